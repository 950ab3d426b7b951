"""Out-of-domain content for portraits, drawn from seeds with exact masks: hats, hands, glasses, scribbles and others.

No paper measures where its method finds out-of-domain pixels; a drawn object has a known mask. One seed is one design:
it fixes kinds, shapes, sizes and materials, in coordinates of the face, so a test set is a list of numbers. Colours of
skin and hair and the brightness are taken from the picture.

The modules, each importing only those before it: `textures` (seeded numbers, materials), `canvas` (coordinates, shapes,
light), `lettering`; the drawings `headwear`, `wear`, `hands`, `overlays`, `scene`; `compose`.
"""

from .compose import OCCLUDER_KINDS, SHADOW_THRESHOLD, Occluded, occlude, occlude_some

__all__ = ["OCCLUDER_KINDS", "SHADOW_THRESHOLD", "Occluded", "occlude", "occlude_some"]

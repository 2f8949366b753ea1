"""(image, question, steering) of the interpreted GPU stack; few, as each step takes long."""

from adaptvis_vllm import AdaptVis, ScalingVis
from support.maps_parity import mapped

# With 32 tokens a block, the second prompt ends one token after a block's end.
CASES = [
    (0, "Where is the red cat?", mapped(AdaptVis(0.3, 3.0, 1.0), tokens=2)),
    (1, "cat " * 8, AdaptVis(0.3, 3.0, 0.0)),
    (2, "Where is the red cat?", mapped(ScalingVis(3.0), "0,2")),
    (3, "Where is the red cat?", None),
]

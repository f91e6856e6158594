from dataclasses import replace

from cases import t5

# As in mT5's checkpoints; T5's case compares the settings.
CASE = replace(t5.CASE, sizes=t5.SIZES | {"feed_forward_proj": "gated-gelu"}, variations=())

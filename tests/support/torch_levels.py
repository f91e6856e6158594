"""The level of a parameter by its name in PyTorch: embeddings, layers, span head."""

import re

LAYER = re.compile(r"\.(?:block|layer|layers|albert_layer_groups)\.(\d+)\.")
# What PyTorch's names put beside the layers and is part of one: final norms (the last layer of
# their stack), and DeBERTa's convolution, which runs beside the first layer.
FINAL_NORM = re.compile(
    r"model\.final_norm\.\w+|(roberta_prelayernorm|roberta\.encoder)\.LayerNorm\.\w+"
    r"|bert\.encoder\.ln\.\w+"
    r"|model\.(encoder|decoder)\.layer_norm\.\w+|(encoder|decoder)\.final_layer_norm\.\w+"
)


def expected_level(name, family, layers, encoder_layers):
    """The level by PyTorch's name of a parameter."""
    # BigBird and Splinter have the head in a module of its own; ModernBERT's is a classifier.
    if re.match(r"(qa_outputs|qa_classifier|splinter_qass|head|classifier)\.", name):
        return layers + 1
    is_decoder = re.match(r"(model\.)?decoder\.", name) is not None
    before = encoder_layers if is_decoder else 0
    if match := LAYER.search(name):
        return before + int(match[1]) + 1
    if FINAL_NORM.fullmatch(name):
        return layers if is_decoder or not encoder_layers else encoder_layers
    return 1 if name.startswith("deberta.encoder.conv.") else 0

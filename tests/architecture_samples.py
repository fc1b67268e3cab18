"""Tiny networks of transformers and timm with random weights."""

import torch
from torch.nn import functional as F  # noqa: N812

VOCABULARY, CLASSES = 11, 3


def drawn():
    return torch.Generator().manual_seed(0)


def ids():
    """No index of a padding token, whose row torch takes for a constant."""
    return torch.randint(2, VOCABULARY, (2, 4), generator=drawn())


def picture(size=8, channels=3):
    return torch.randn(2, channels, size, size, generator=drawn())


def tokens_loss(outputs, targets):
    return F.cross_entropy(outputs.logits.flatten(0, 1), targets.flatten())


def class_loss(outputs, targets):
    return F.cross_entropy(outputs.logits, targets)


SHAPE = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
BERT = SHAPE | {"intermediate_size": 12, "max_position_embeddings": 8}
LLAMA = BERT | {"num_key_value_heads": 1}
MIXTRAL = LLAMA | {"num_local_experts": 3, "num_experts_per_tok": 2}
VIT = SHAPE | {"intermediate_size": 12, "image_size": 8, "patch_size": 4}
WORDS = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}

TRANSFORMERS = {
    "Llama": ("LlamaForCausalLM", LLAMA),
    "Mistral": ("MistralForCausalLM", LLAMA),
    "Qwen2": ("Qwen2ForCausalLM", LLAMA),
    "Qwen3": ("Qwen3ForCausalLM", LLAMA | {"head_dim": 4}),
    "Gemma": ("GemmaForCausalLM", LLAMA | {"head_dim": 4}),
    "Gemma2": ("Gemma2ForCausalLM", LLAMA | {"head_dim": 4}),
    "Phi3": ("Phi3ForCausalLM", LLAMA),
    "OLMo2": ("Olmo2ForCausalLM", LLAMA),
    "Mixtral": ("MixtralForCausalLM", MIXTRAL),
    "Mixtral, experts one by one": (
        "MixtralForCausalLM", MIXTRAL | {"experts_implementation": "eager"}),
    "GPT-2": ("GPT2LMHeadModel", {"n_positions": 8, "n_embd": 8, "n_layer": 1, "n_head": 2}),
    "GPT-NeoX": ("GPTNeoXForCausalLM", BERT),
    "OPT": ("OPTForCausalLM", SHAPE | {
        "ffn_dim": 12, "max_position_embeddings": 8, "word_embed_proj_dim": 8}),
    "BLOOM": ("BloomForCausalLM", {"hidden_size": 8, "n_layer": 1, "n_head": 2}),
    "Falcon": ("FalconForCausalLM", SHAPE),
    "Mamba": ("MambaForCausalLM", {"hidden_size": 8, "num_hidden_layers": 1, "state_size": 3}),
    "BERT": ("BertForMaskedLM", BERT),
    "RoBERTa": ("RobertaForMaskedLM", BERT | {"max_position_embeddings": 12}),
    "DistilBERT": ("DistilBertForMaskedLM", {
        "dim": 8, "n_layers": 1, "n_heads": 2, "hidden_dim": 12, "max_position_embeddings": 8}),
    "T5": ("T5ForConditionalGeneration", {
        "d_model": 8, "d_kv": 4, "d_ff": 12, "num_layers": 1, "num_decoder_layers": 1,
        "num_heads": 2, "decoder_start_token_id": 0}),
    "Whisper": ("WhisperForConditionalGeneration", {
        "num_mel_bins": 4, "d_model": 8, "encoder_layers": 1, "decoder_layers": 1,
        "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 12,
        "decoder_ffn_dim": 12, "max_source_positions": 4, "max_target_positions": 8,
        "decoder_start_token_id": 1}),
    "ViT": ("ViTForImageClassification", VIT),
    "DeiT": ("DeiTForImageClassification", VIT),
    "Swin": ("SwinForImageClassification", {
        "image_size": 8, "patch_size": 2, "embed_dim": 4, "depths": [1, 1], "num_heads": [1, 2],
        "window_size": 2}),
    "ConvNeXt": ("ConvNextForImageClassification", {
        "hidden_sizes": [4, 6], "depths": [1, 1], "num_stages": 2, "patch_size": 2}),
    "ResNet": ("ResNetForImageClassification", {
        "embedding_size": 4, "hidden_sizes": [4, 6], "depths": [1, 1], "layer_type": "basic"}),
}  # fmt: skip
"""Name to the class and the options of its configuration."""


def made(name, package):
    """A network of transformers, its loss, its inputs and its targets."""
    kind, options = TRANSFORMERS[name]
    network = getattr(package, kind)
    if kind.endswith("ImageClassification"):
        model = network(network.config_class(num_labels=CLASSES, **options))
        return model, class_loss, {"pixel_values": picture()}, torch.tensor([0, 2])
    inputs = {"input_ids": ids()}
    if name == "T5":
        inputs["decoder_input_ids"] = ids().roll(1, 1)
    if name == "Whisper":
        sound = torch.randn(2, 4, 8, generator=drawn())
        inputs = {"input_features": sound, "decoder_input_ids": ids()}
    model = network(network.config_class(**WORDS | options))
    return model, tokens_loss, inputs, ids().roll(-1, 1)


TIMM = {
    "EfficientNet": ("efficientnet_b0", "bn1.weight"),
    "MobileNetV2": ("mobilenetv2_035", "bn1.*"),
    "MobileNetV3": ("mobilenetv3_small_050", "bn1.*"),
    "GhostNet": ("ghostnet_050", "bn1.*"),
    "TinyNet": ("tinynet_e", "bn1.*"),
    "NFNet": ("nfnet_l0", "stem.conv1.bias"),
    "RegNet": ("regnetx_002", "stem.bn.*"),
    "ResNet-18": ("resnet18", "bn1.weight"),
}
"""Name to the network of timm and the block of parameters that is compared: one at its entrance."""

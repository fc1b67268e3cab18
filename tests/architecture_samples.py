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


def hidden_loss(outputs, targets):
    return (outputs.last_hidden_state - targets).square().mean()


def language(t, kind, config, **options):
    """A causal language model and its next tokens."""
    given = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
    model = getattr(t, kind)(getattr(t, config)(**given, **options))
    return model, tokens_loss, {"input_ids": ids()}, ids().roll(-1, 1)


def vision(t, kind, config, size=8, **options):
    model = getattr(t, kind)(getattr(t, config)(num_labels=CLASSES, **options))
    return model, class_loss, {"pixel_values": picture(size)}, torch.tensor([0, 2])


LLAMA = {
    "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
    "intermediate_size": 12, "max_position_embeddings": 8,
}  # fmt: skip
BERT = {
    "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12,
    "max_position_embeddings": 8,
}  # fmt: skip
EXPERTS = {"num_local_experts": 3, "num_experts_per_tok": 2}
VIT = BERT | {"image_size": 8, "patch_size": 4}
del VIT["max_position_embeddings"]


def encoder_decoder(t):
    config = t.T5Config(
        vocab_size=VOCABULARY, d_model=8, d_kv=4, d_ff=12, num_layers=1, num_decoder_layers=1,
        num_heads=2, decoder_start_token_id=0,
    )  # fmt: skip
    inputs = {"input_ids": ids(), "decoder_input_ids": ids().roll(1, 1)}
    return t.T5ForConditionalGeneration(config), tokens_loss, inputs, ids()


def speech(t):
    config = t.WhisperConfig(
        vocab_size=VOCABULARY, num_mel_bins=4, d_model=8, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=12,
        decoder_ffn_dim=12, max_source_positions=4, max_target_positions=8, pad_token_id=0,
        bos_token_id=1, eos_token_id=1, decoder_start_token_id=1,
    )  # fmt: skip
    sound = torch.randn(2, 4, 8, generator=drawn())
    inputs = {"input_features": sound, "decoder_input_ids": ids()}
    return t.WhisperForConditionalGeneration(config), tokens_loss, inputs, ids().roll(-1, 1)


TRANSFORMERS = {
    "Llama": lambda t: language(t, "LlamaForCausalLM", "LlamaConfig", **LLAMA),
    "Mistral": lambda t: language(t, "MistralForCausalLM", "MistralConfig", **LLAMA),
    "Qwen2": lambda t: language(t, "Qwen2ForCausalLM", "Qwen2Config", **LLAMA),
    "Qwen3": lambda t: language(t, "Qwen3ForCausalLM", "Qwen3Config", head_dim=4, **LLAMA),
    "Gemma": lambda t: language(t, "GemmaForCausalLM", "GemmaConfig", head_dim=4, **LLAMA),
    "Gemma2": lambda t: language(t, "Gemma2ForCausalLM", "Gemma2Config", head_dim=4, **LLAMA),
    "Phi3": lambda t: language(t, "Phi3ForCausalLM", "Phi3Config", **LLAMA),
    "OLMo2": lambda t: language(t, "Olmo2ForCausalLM", "Olmo2Config", **LLAMA),
    "Mixtral": lambda t: language(
        t, "MixtralForCausalLM", "MixtralConfig", **LLAMA, **EXPERTS),
    "Mixtral, experts one by one": lambda t: language(
        t, "MixtralForCausalLM", "MixtralConfig", experts_implementation="eager", **LLAMA,
        **EXPERTS),
    "GPT-2": lambda t: language(
        t, "GPT2LMHeadModel", "GPT2Config", n_positions=8, n_embd=8, n_layer=1, n_head=2),
    "GPT-NeoX": lambda t: language(t, "GPTNeoXForCausalLM", "GPTNeoXConfig", **BERT),
    "OPT": lambda t: language(
        t, "OPTForCausalLM", "OPTConfig", hidden_size=8, num_hidden_layers=1, ffn_dim=12,
        num_attention_heads=2, max_position_embeddings=8, word_embed_proj_dim=8),
    "BLOOM": lambda t: language(
        t, "BloomForCausalLM", "BloomConfig", hidden_size=8, n_layer=1, n_head=2),
    "Falcon": lambda t: language(
        t, "FalconForCausalLM", "FalconConfig", hidden_size=8, num_hidden_layers=1,
        num_attention_heads=2),
    "Mamba": lambda t: language(
        t, "MambaForCausalLM", "MambaConfig", hidden_size=8, num_hidden_layers=1, state_size=3),
    "BERT": lambda t: language(t, "BertForMaskedLM", "BertConfig", **BERT),
    "RoBERTa": lambda t: language(
        t, "RobertaForMaskedLM", "RobertaConfig", **(BERT | {"max_position_embeddings": 12})),
    "DistilBERT": lambda t: language(
        t, "DistilBertForMaskedLM", "DistilBertConfig", dim=8, n_layers=1, n_heads=2,
        hidden_dim=12, max_position_embeddings=8),
    "T5": encoder_decoder,
    "Whisper": speech,
    "ViT": lambda t: vision(t, "ViTForImageClassification", "ViTConfig", **VIT),
    "DeiT": lambda t: vision(t, "DeiTForImageClassification", "DeiTConfig", **VIT),
    "Swin": lambda t: vision(
        t, "SwinForImageClassification", "SwinConfig", image_size=8, patch_size=2, embed_dim=4,
        depths=[1, 1], num_heads=[1, 2], window_size=2),
    "ConvNeXt": lambda t: vision(
        t, "ConvNextForImageClassification", "ConvNextConfig", hidden_sizes=[4, 6], depths=[1, 1],
        num_stages=2, patch_size=2),
    "ResNet": lambda t: vision(
        t, "ResNetForImageClassification", "ResNetConfig", embedding_size=4, hidden_sizes=[4, 6],
        depths=[1, 1], layer_type="basic"),
}  # fmt: skip
"""Name to a function of the package that makes (model, loss, inputs, targets)."""

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

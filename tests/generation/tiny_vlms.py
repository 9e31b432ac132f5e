"""Tiny random targets that see images, and prompts with an image in them."""

import torch
from tiny_targets import TINY, VOCAB_SIZE
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText

IMAGE_ID, START_ID, END_ID, VIDEO_ID = SPECIAL = [60, 61, 62, 63]
_MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
_SPECIAL = {
    "image_token_id": IMAGE_ID,
    "video_token_id": VIDEO_ID,
    "vision_start_token_id": START_ID,
    "vision_end_token_id": END_ID,
}
_VISION = {"depth": 2, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "patch_size": 4}
_SIGLIP = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}
_LINEAR = {
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "layer_types": ["linear_attention", "linear_attention", "full_attention", "linear_attention"],
}
_QWEN3_VISION = {**_VISION, "out_hidden_size": 32, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
_FIELDS = {
    "qwen2_vl": {
        **_SPECIAL,
        "text_config": {**TINY, "rope_parameters": _MROPE},
        "vision_config": {"depth": 2, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "patch_size": 4},
    },
    "qwen2_5_vl": {
        **_SPECIAL,
        "text_config": {**TINY, "rope_parameters": _MROPE},
        "vision_config": {**_VISION, "out_hidden_size": 32, "fullatt_block_indexes": [0], "window_size": 16},
    },
    "qwen3_vl": {**_SPECIAL, "text_config": {**TINY, "rope_parameters": _MROPE}, "vision_config": _QWEN3_VISION},
    "qwen3_5": {
        **_SPECIAL,
        "text_config": {**TINY, **_LINEAR, "rope_parameters": {**_MROPE, "partial_rotary_factor": 1.0}},
        "vision_config": {**_VISION, "out_hidden_size": 32, "num_position_embeddings": 16},
    },
    "gemma3": {
        "image_token_index": IMAGE_ID,
        "boi_token_index": START_ID,
        "eoi_token_index": END_ID,
        "mm_tokens_per_image": 4,
        "text_config": {**TINY, "sliding_window": 8, "query_pre_attn_scalar": 8, "model_type": "gemma3_text"},
        "vision_config": {**_SIGLIP, "model_type": "siglip_vision_model", "vision_use_head": False},
    },
    "qwen3_vl_moe": {
        **_SPECIAL,
        "text_config": {
            **TINY,
            "rope_parameters": _MROPE,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
        },
        "vision_config": _QWEN3_VISION,
    },
    "glm4v": {
        "image_token_id": IMAGE_ID,
        "video_token_id": VIDEO_ID,
        "image_start_token_id": START_ID,
        "image_end_token_id": END_ID,
        "text_config": {**TINY, "rope_parameters": {**_MROPE, "partial_rotary_factor": 1.0}},
        "vision_config": {**_VISION, "out_hidden_size": 32, "image_size": 16},
    },
    "gemma4": {
        "image_token_id": IMAGE_ID,
        "boi_token_id": START_ID,
        "eoi_token_id": END_ID,
        "text_config": {
            **TINY,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
            "vocab_size_per_layer_input": VOCAB_SIZE,
            "hidden_size_per_layer_input": 8,
            "global_head_dim": 8,
            "num_kv_shared_layers": 2,
        },
        "vision_config": {
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "patch_size": 4,
            "pooling_kernel_size": 2,
            "position_embedding_size": 16,
        },
        "audio_config": None,
    },
    "idefics3": {
        "image_token_id": IMAGE_ID,
        "text_config": {**TINY, "model_type": "llama"},
        "vision_config": {**_SIGLIP, "image_size": 16},
        "scale_factor": 2,
    },
    "mistral3": {
        "image_token_index": IMAGE_ID,
        "spatial_merge_size": 2,
        "text_config": {**TINY, "model_type": "mistral", "sliding_window": 8},
        "vision_config": {**_SIGLIP, "model_type": "pixtral", "image_size": 16, "head_dim": 8},
        "vision_feature_layer": -1,
    },
    "paligemma": {
        "image_token_index": IMAGE_ID,
        "text_config": {**TINY, "model_type": "gemma"},
        "vision_config": {
            **_SIGLIP,
            "model_type": "siglip_vision_model",
            "projection_dim": 32,
            "vision_use_head": False,
        },
        "projection_dim": 32,
    },
    "llava": {
        "image_token_index": IMAGE_ID,
        "text_config": {**TINY, "model_type": "llama"},
        "vision_config": {**_SIGLIP, "model_type": "clip_vision_model", "projection_dim": 16},
        "vision_feature_select_strategy": "default",
    },
}
FAMILIES = tuple(_FIELDS)


def make_vlm(family, seed=0, **text):
    """A random float32 target with an image encoder of two layers; `text` are fields of its language model."""
    torch.manual_seed(seed)
    fields = {**_FIELDS[family], "text_config": _FIELDS[family]["text_config"] | text}
    config = CONFIG_MAPPING[family](**fields, tie_word_embeddings=False, pad_token_id=0)
    model = AutoModelForImageTextToText.from_config(config).eval()
    if family == "gemma3":
        # Zeros at first, which would hide the image.
        model.model.multi_modal_projector.mm_input_projection_weight.data.normal_(generator=torch.Generator())
    return model


def make_image_prompt(family, num_before=5, num_after=6, num_images=1, seed=0):
    """What a processor makes of text with images in it, four tokens each: the arguments of `generate()`, one row."""
    generator = torch.Generator().manual_seed(seed)
    images = [torch.tensor([START_ID, *[IMAGE_ID] * 4, END_ID])] * num_images
    before, after = (torch.randint(1, IMAGE_ID, (length,), generator=generator) for length in (num_before, num_after))
    ids = torch.cat([before, *images, after]).unsqueeze(0)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    is_image = (ids == IMAGE_ID).long()
    shape = (num_images, 3, 8, 8)
    if family.startswith("qwen") or family == "glm4v":
        shape = (16 * num_images, 3 * 2 * 4 * 4)
        inputs["image_grid_thw"] = torch.tensor([[1, 4, 4]] * num_images)
        inputs["mm_token_type_ids"] = is_image
    elif family == "gemma4":
        shape = (num_images, 16, 3 * 4 * 4)
        grid = torch.cartesian_prod(torch.arange(4), torch.arange(4))
        inputs["image_position_ids"] = grid.expand(num_images, -1, -1).contiguous()
        inputs["mm_token_type_ids"] = is_image
    elif family == "mistral3":
        shape = (num_images, 3, 16, 16)
        inputs["image_sizes"] = torch.tensor([[16, 16]] * num_images)
    elif family == "idefics3":
        shape = (1, num_images, 3, 16, 16)
    elif family in ("gemma3", "paligemma"):
        inputs["token_type_ids"] = is_image
    inputs["pixel_values"] = torch.rand(shape, generator=generator)
    return inputs


def join_rows(rows):
    """Prompts of different lengths as one batch, padded on the left."""
    width = max(row["input_ids"].shape[1] for row in rows)
    inputs = {}
    for name in rows[0]:
        parts = [row[name] for row in rows]
        if name in ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"):
            parts = [torch.nn.functional.pad(part, (width - part.shape[1], 0)) for part in parts]
        inputs[name] = torch.cat(parts)
    return inputs

"""The drafters' formulas written down plainly, one slot and one row at a time, to compare the models with."""

import torch


def naive_bias(head_type, head, prev_ids, hidden):
    """Logit bias of one block's slots `(slots, V)`: DSpark's sequential head (paper, section 3.2).

    `prev_ids` `(slots,)` are the tokens before the slots, `hidden` `(slots, E)` their block hidden states.
    """
    w1, w2 = head.markov_w1.weight, head.markov_w2.weight
    rank, biases, state = w1.shape[1], [], torch.zeros(w1.shape[1])
    for token, h in zip(prev_ids.tolist(), hidden, strict=True):
        if head_type == "vanilla":
            m = w1[token]
        elif head_type == "gated":
            weight, bias = head.gate_proj.weight, head.gate_proj.bias
            m = 1 / (1 + torch.exp(-(weight @ torch.cat([h, w1[token]]) + bias))) * w1[token]
        else:
            z = torch.cat([state, w1[token], h])
            joint = head.joint_proj.weight @ z + head.joint_proj.bias
            gate, candidate, output = joint[:rank], joint[rank : 2 * rank], joint[2 * rank :]
            gate = 1 / (1 + torch.exp(-gate))
            state = gate * state + (1 - gate) * torch.tanh(candidate)
            m = torch.tanh(output)
        biases.append(w2 @ m)
    return torch.stack(biases)


def naive_confidence(head, hidden, prev_embeds=None):
    """`w [h_k; W1[x_{k-1}]] + b` of each slot, `(slots,)`."""
    inputs = hidden if prev_embeds is None else torch.cat([hidden, prev_embeds], -1)
    return inputs @ head.proj.weight[0] + head.proj.bias[0]


def rms_norm(x, weight, eps):
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps) * weight


def rotate(x, position, theta):
    """Rotary embedding of one vector `(D,)` in the half-split form."""
    half = x.shape[-1] // 2
    angles = position * theta ** (-torch.arange(half, dtype=torch.float64) / half)
    cos, sin = angles.cos().to(x), angles.sin().to(x)
    return torch.cat([x[:half] * cos - x[half:] * sin, x[half:] * cos + x[:half] * sin])


def naive_eagle3(drafter, token_ids, features, anchor, num_steps):
    """Hidden states before the final norm, `(steps, E)`, of an EAGLE-3 drafter behind `anchor` in one text.

    `token_ids` `(S,)` holds the true tokens of the steps too, `features` `(S, taps * E)`.
    """
    config, layer = drafter.config.decoder_config, drafter.layers[0]
    attention, eps, dim = layer.self_attn, config.rms_norm_eps, layer.self_attn.head_dim
    theta, group = config.rope_parameters["rope_theta"], config.num_attention_heads // config.num_key_value_heads
    embedding = drafter.borrowed.embed_tokens.weight

    def normed(vector, name):
        norm = getattr(attention, name, None)
        return vector if norm is None else rms_norm(vector, norm.weight, eps)

    keys, values, hidden, outputs = [], [], None, []
    if drafter.input_norm is not None:
        features = rms_norm(features, drafter.input_norm.weight, eps)
    projected = features @ drafter.fc.weight.T
    for position in range(anchor - 1 + num_steps):
        # The pair of feature `position` and token `position + 1`.
        hidden = projected[position] if position < anchor else outputs[-1]
        pair = torch.cat([
            rms_norm(embedding[token_ids[position + 1]], layer.input_layernorm.weight, eps),
            rms_norm(hidden, layer.hidden_norm.weight, eps),
        ])  # fmt: skip
        queries = (attention.q_proj.weight @ pair).view(-1, dim)
        keys.append(
            [rotate(normed(k, "k_norm"), position, theta) for k in (attention.k_proj.weight @ pair).view(-1, dim)]
        )
        values.append(list((attention.v_proj.weight @ pair).view(-1, dim)))
        if position < anchor - 1:
            continue
        heads = []
        for index, query in enumerate(queries):
            query = rotate(normed(query, "q_norm"), position, theta)
            scores = torch.stack([query @ row[index // group] for row in keys]) / dim**0.5
            heads.append(sum(p * row[index // group] for p, row in zip(scores.softmax(0), values, strict=True)))
        residual = rms_norm(hidden, layer.hidden_norm.weight, eps) if layer.norm_before_residual else hidden
        middle = residual + attention.o_proj.weight @ torch.cat(heads)
        inner = rms_norm(middle, layer.post_attention_layernorm.weight, eps)
        gated = torch.nn.functional.silu(layer.mlp.gate_proj.weight @ inner) * (layer.mlp.up_proj.weight @ inner)
        outputs.append(middle + layer.mlp.down_proj.weight @ gated)
    return torch.stack(outputs)


def rope_frequencies(config, layer_type, dim):
    """Angle per position of each rotated pair: all of them, or with Gemma's proportional rope the first ones."""
    rope = config.rope_parameters.get(layer_type, config.rope_parameters)
    pairs = torch.arange(dim // 2, dtype=torch.float64)
    turning = pairs < int(rope.get("partial_rotary_factor", 1.0) * dim // 2)
    return torch.where(turning, rope["rope_theta"] ** (-2 * pairs / dim), 0.0)


def turn(x, angles):
    half, (cos, sin) = x.shape[-1] // 2, (angles.cos().to(x), angles.sin().to(x))
    return torch.cat([x[:half] * cos - x[half:] * sin, x[half:] * cos + x[:half] * sin])


def naive_block(drafter, features, anchor, anchor_id, window=None, sees_ahead=True):
    """Hidden states after the final norm, `(block, E)`, of one block behind `features[:anchor]`, `(S, taps * E)`.

    `window` and `sees_ahead` hold for the layers of type `sliding_attention`; the others see everything.
    """
    config, block_size = drafter.config.decoder_config, drafter.config.block_size
    is_gemma, eps = config.model_type.startswith("gemma4"), config.rms_norm_eps
    ids = [anchor_id] + [drafter.config.mask_token_id] * (block_size - 1)
    hidden = [drafter.borrowed.target.get_input_embeddings().weight[token] for token in ids]
    if is_gemma:
        hidden = [row * config.hidden_size**0.5 for row in hidden]
    context = [rms_norm(drafter.fc.weight @ row, drafter.hidden_norm.weight, eps) for row in features[:anchor]]
    for layer, layer_type in zip(drafter.layers, drafter.config.attention_types(), strict=True):
        slides = layer_type == "sliding_attention"
        inner = [rms_norm(row, layer.input_layernorm.weight, eps) for row in hidden]
        mixed = naive_attention(
            layer.self_attn, config, layer_type, context + inner, anchor, window if slides else None,
            sees_ahead or not slides, is_gemma,
        )  # fmt: skip
        outputs = []
        for row, attended in zip(hidden, mixed, strict=True):
            attended = layer.self_attn.o_proj.weight @ attended
            if is_gemma:
                row = row + rms_norm(attended, layer.post_attention_layernorm.weight, eps)
                wide = rms_norm(row, layer.pre_feedforward_layernorm.weight, eps)
            else:
                row = row + attended
                wide = rms_norm(row, layer.post_attention_layernorm.weight, eps)
            gate, up = layer.mlp.gate_proj.weight @ wide, layer.mlp.up_proj.weight @ wide
            if is_gemma:
                gate = 0.5 * gate * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (gate + 0.044715 * gate**3)))
                narrow = layer.mlp.down_proj.weight @ (gate * up)
                row = (row + rms_norm(narrow, layer.post_feedforward_layernorm.weight, eps)) * layer.layer_scalar
            else:
                row = row + layer.mlp.down_proj.weight @ (gate * torch.sigmoid(gate) * up)
            outputs.append(row)
        hidden = outputs
    return torch.stack([rms_norm(row, drafter.norm.weight, eps) for row in hidden])


def naive_attention(attention, config, layer_type, states, first_query, window, sees_ahead, is_gemma):
    """What the states from `first_query` on gather from all `states`, heads concatenated."""
    dim, frequencies = attention.head_dim, rope_frequencies(config, layer_type, attention.head_dim)
    keys, values = [], []
    for position, state in enumerate(states):
        heads = (attention.k_proj.weight @ state).view(-1, dim)
        own = getattr(attention, "v_proj", None)
        plain = heads if own is None else (own.weight @ state).view(-1, dim)
        values.append([rms_norm(v, 1.0, config.rms_norm_eps) if is_gemma else v for v in plain])
        if hasattr(attention, "k_norm"):
            heads = [rms_norm(k, attention.k_norm.weight, config.rms_norm_eps) for k in heads]
        keys.append([turn(k, position * frequencies) for k in heads])
    group, gathered = config.num_attention_heads // len(keys[0]), []
    for position in range(first_query, len(states)):
        seen = [
            other for other in range(len(states))
            if (sees_ahead or other <= position) and (window is None or position - other < window)
        ]  # fmt: skip
        heads = []
        for index, query in enumerate((attention.q_proj.weight @ states[position]).view(-1, dim)):
            if hasattr(attention, "q_norm"):
                query = rms_norm(query, attention.q_norm.weight, config.rms_norm_eps)
            query = turn(query, position * frequencies)
            scores = torch.stack([query @ keys[other][index // group] for other in seen])
            probs = (scores if is_gemma else scores / dim**0.5).softmax(0)
            heads.append(sum(p * values[other][index // group] for p, other in zip(probs, seen, strict=True)))
        gathered.append(torch.cat(heads))
    return gathered

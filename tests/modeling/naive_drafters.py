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

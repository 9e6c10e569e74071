"""tools/export.py: a trained model for Hugging Face's transformers, or for a browser.

    python tools/export.py my_llama --ckpt checkpoints/toy
    python tools/export.py docs/play/model --onnx

model.py is LLaMA (Sec. 4.1) under Hugging Face's parameter names and in its
rotary convention, so the weights are written as they are, beside a
config.json in transformers' words. To read them:

    LlamaForCausalLM.from_pretrained("my_llama")

The folder holds no tokenizer: a prompt becomes token ids by `prefix_tokens`
of model.py, and video tokens become pixels by tokenizer.py.

With --onnx the folder gets what docs/play/sample.js reads: decoder.onnx, a pass
of the language model; encode.onnx and decode.onnx, frames -> tokens -> frames; all
weights as float16; and model.json.

Needs: pip install safetensors, or for --onnx: pip install onnx onnxscript
"""
import argparse
import json
import math
import os
import sys
from dataclasses import asdict

import torch
from torch.func import functional_call

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from model import rotary  # noqa: E402
from sample import load  # noqa: E402
from tools.machine import run_script  # noqa: E402
from tools.play import PROMPTS, code_colors  # noqa: E402

MOST = 50  # M parameters: 100 MB to be loaded


def hugging_face_config(model):
    config, keys = model.config, model.model.layers[0].self_attn.k_proj.out_features
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": config.dim,
        "intermediate_size": config.ffn_dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": keys * config.n_heads // config.dim,  # of grouped queries
        "max_position_embeddings": config.max_len,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": False,
        "vocab_size": config.vocab_size,
        "pad_token_id": None,  # padding is attended to, it needs no mask
        "bos_token_id": config.sot,
        "eos_token_id": config.eoi,
        "torch_dtype": str(model.lm_head.weight.dtype).removeprefix("torch."),
    }


def export(model, folder):
    """Write a Llama as folder/config.json, generation_config.json and model.safetensors."""
    from safetensors.torch import save_file
    config = hugging_face_config(model)
    os.makedirs(folder, exist_ok=True)
    save_file(model.state_dict(), os.path.join(folder, "model.safetensors"),
              {"format": "pt"})
    c = model.config
    generation = {"bos_token_id": c.sot, "eos_token_id": c.eoi, "suppress_tokens":
                  [*range(c.text_vocab), *range(c.pad, c.vocab_size)]}  # all but video
    for name, x in ("config", config), ("generation_config", generation):
        with open(os.path.join(folder, f"{name}.json"), "w") as f:
            json.dump(x, f, indent=1)


class Past:
    """A model.KVCache for a graph. Keys and values of the past, (B, heads, size, head_dim) for
    each layer, of which `length` are filled, are inputs; those of n new tokens outputs."""

    def __init__(self, config, n, length, keys, values):
        size = keys[0].shape[2]
        self.past, self.k, self.v = list(zip(keys, values)), [], []
        self.cos, self.sin = rotary(config, length + torch.arange(n))
        filled = (torch.arange(size) < length).expand(n, size)
        visible = torch.cat([filled, torch.ones(n, n).tril().bool()], 1)
        self.mask = torch.where(visible, 0, -math.inf)

    def attend(self, layer, q, k, v):
        """KVCache.attend, without a copy of the past."""
        past_k, past_v = self.past[layer]
        self.k.append(k)
        self.v.append(v)
        scores = torch.cat([q @ past_k.mT, q @ k.mT], -1) * q.shape[-1] ** -0.5
        p = (scores + self.mask).softmax(-1)
        size = past_k.shape[2]
        return p[..., :size] @ past_v + p[..., size:] @ v


class Graph(torch.nn.Module):
    """compute(*inputs) in float32, from a module's weights as float16."""

    def __init__(self, module, compute):
        super().__init__()
        self.module, self.compute = module.half(), compute

    def forward(self, *inputs):
        weights = dict(self.named_parameters())
        if all(w.dtype == torch.float16 for w in weights.values()):
            return functional_call(self, {name: w.float() for name, w in weights.items()}, inputs)
        return self.compute(*inputs)


@torch.no_grad()
def export_onnx(model, tokenizer, text, folder):
    """Write what docs/play/sample.js reads. ValueError for models that are not for browsers."""
    import onnxscript  # noqa: F401  torch.onnx needs it
    c, size, any_ = model.config, tokenizer.config.resolution, torch.export.Dim.DYNAMIC
    count = sum(w.numel() for m in (model, tokenizer) for w in m.parameters()) / 1e6
    if count > MOST or c.text_tokenizer == "gpt2":
        raise ValueError(f"{count:,.0f} M parameters, {c.text_tokenizer} as text: a browser gets "
                         f"at most {MOST} M, and bytes or the storybook's words")
    about = {**asdict(c), "resolution": size, "sampling": model.sampling, "examples": PROMPTS,
             "words": [text.bpe.decode([i]) for i in range(256, text.bpe.n_vocab)],
             "colors": code_colors(tokenizer)[:, :3].tolist()}
    os.makedirs(folder, exist_ok=True)

    def save(name, module, compute, inputs, shapes, *names):
        torch.onnx.export(
            Graph(module, compute).eval(), inputs, os.path.join(folder, f"{name}.onnx"),
            dynamo=True, external_data=False, verbose=False, dynamic_shapes=(shapes,),
            input_names=names[0], output_names=names[1])

    def step(tokens, length, keys, values):
        cache = Past(c, tokens.shape[1], length, keys, values)
        return model.next_logits(tokens.long(), cache, tokens.shape[1]), cache.k, cache.v

    keys, values = ([torch.zeros(2, c.n_heads, 64, c.dim // c.n_heads)  # each an input
                     for _ in range(c.n_layers)] for _ in "kv")
    cached = [f"{x}{i}" for x in "kv" for i in range(c.n_layers)]
    save("decoder", model, step, (torch.zeros(2, 8).int(), torch.tensor(9), keys, values),
         ({0: any_, 1: any_}, None, *[[{0: any_, 2: any_}] * c.n_layers] * 2),
         ["tokens", "length", *cached], ["logits", *[f"new_{x}" for x in cached]])
    save("encode", tokenizer, lambda video: tokenizer.encode(video).int(),
         (torch.zeros(1, 3, 9, size, size),), ({2: 4 * torch.export.Dim("k", min=1) + 1},),
         ["video"], ["tokens"])
    save("decode", tokenizer, lambda tokens: tokenizer.decode(tokens.long()),
         (torch.zeros(1, *c.latent_shape).int(),), ({1: any_},), ["tokens"], ["video"])
    with open(os.path.join(folder, "model.json"), "w") as f:
        json.dump(about, f)


def main():
    p = argparse.ArgumentParser(description="Write a trained model for transformers.")
    p.add_argument("folder", metavar="DIR", help="folder to write")
    p.add_argument("--ckpt", metavar="FOLDER",
                   help="of a training, for its latest stage, or a stageN.pt (the shipped toy)")
    p.add_argument("--onnx", action="store_true",
                   help="for docs/play, in a browser, instead of transformers")
    args = p.parse_args()
    model, tokenizer, text = load(args.ckpt)
    if args.onnx:
        export_onnx(model, tokenizer, text, args.folder)
    else:
        export(model, args.folder)


if __name__ == "__main__":
    run_script(main)

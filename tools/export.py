"""tools/export.py: a trained decoder for Hugging Face's transformers.

    python tools/export.py my_llama --ckpt checkpoints/toy

model.py is LLaMA (Sec. 4.1) under Hugging Face's parameter names and in its
rotary convention, so the weights are written as they are, beside a
config.json in transformers' words. To read them:

    LlamaForCausalLM.from_pretrained("my_llama")

The folder holds no tokenizer: a prompt becomes token ids by `prefix_tokens`
of model.py, and video tokens become pixels by tokenizer.py.

Needs: pip install safetensors
"""
import argparse
import json
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from sample import load  # noqa: E402


def hugging_face_config(config, dtype):
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": config.dim,
        "intermediate_size": config.ffn_dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_heads,
        "max_position_embeddings": config.max_len,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": False,
        "vocab_size": config.vocab_size,
        "pad_token_id": None,  # padding is attended to, it needs no mask
        "bos_token_id": config.sot,
        "eos_token_id": config.eoi,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }


def export(model, folder):
    """Write a Llama as folder/config.json, generation_config.json and model.safetensors.
    Raises ValueError without the safetensors package."""
    try:
        from safetensors.torch import save_file
    except ImportError as e:
        raise ValueError("safetensors is needed: pip install safetensors") from e
    config = hugging_face_config(model.config, model.lm_head.weight.dtype)
    os.makedirs(folder, exist_ok=True)
    save_file(model.state_dict(), os.path.join(folder, "model.safetensors"),
              {"format": "pt"})
    c = model.config
    generation = {"bos_token_id": c.sot, "eos_token_id": c.eoi, "suppress_tokens":
                  [*range(c.text_vocab), *range(c.pad, c.vocab_size)]}  # all but video
    for name, x in ("config", config), ("generation_config", generation):
        with open(os.path.join(folder, f"{name}.json"), "w") as f:
            json.dump(x, f, indent=1)


def main():
    p = argparse.ArgumentParser(description="Write a decoder for transformers.")
    p.add_argument("folder", metavar="DIR")
    p.add_argument("--ckpt", metavar="FOLDER",
                   help="or a stageN.pt (default: the shipped toy)")
    args = p.parse_args()
    model, _, _ = load(args.ckpt)
    export(model, args.folder)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as e:
        sys.exit(f"export.py: {e}")

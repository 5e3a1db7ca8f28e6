"""Reading a checkpoint's config so that no key goes unread in silence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twinlens.errors import ConfigError
from twinlens.families.values import checked, short

MISSING = object()

IRRELEVANT: dict[str, str] = {
    **dict.fromkeys(
        (
            "architectures",
            "model_type",
            "_name_or_path",
            "_model_name_or_path",
            "transformers_version",
            "auto_map",
            "name_or_path",
        ),
        "says what the checkpoint is, not what it computes",
    ),
    **dict.fromkeys(
        (
            "dtype",
            "torch_dtype",
            "initializer_range",
            "initializer_cutoff_factor",
            "_attn_implementation",
            "_experts_implementation",
            "attn_implementation",
            "use_cache",
            "cache_implementation",
            "pretraining_tp",
            "return_dict",
            "output_hidden_states",
            "output_attentions",
            "torchscript",
            "use_bfloat16",
            "tf_legacy_loss",
            "chunk_size_feed_forward",
            "is_llama_config",
            "_attn_implementation_autoset",
            "gradient_checkpointing",
            "hidden_size_per_layer_input",
        ),
        "how the model is stored or run, not what it means",
    ),
    **dict.fromkeys(
        (
            "bos_token_id",
            "eos_token_id",
            "pad_token_id",
            "sep_token_id",
            "decoder_start_token_id",
            "prefix",
            "tokenizer_class",
            "task_specific_params",
            "problem_type",
            "finetuning_task",
            "id2label",
            "label2id",
            "num_labels",
            "transformers.js_config",
            "unk_token_id",
        ),
        "tokenizing, heads of other tasks",
    ),
    **dict.fromkeys(
        (
            "max_length",
            "min_length",
            "do_sample",
            "early_stopping",
            "num_beams",
            "num_beam_groups",
            "diversity_penalty",
            "temperature",
            "top_k",
            "top_p",
            "typical_p",
            "repetition_penalty",
            "length_penalty",
            "no_repeat_ngram_size",
            "encoder_no_repeat_ngram_size",
            "bad_words_ids",
            "num_return_sequences",
            "output_scores",
            "return_dict_in_generate",
            "forced_bos_token_id",
            "forced_eos_token_id",
            "remove_invalid_values",
            "exponential_decay_length_penalty",
            "suppress_tokens",
            "begin_suppress_tokens",
        ),
        "generation",
    ),
    **dict.fromkeys(
        (
            "is_encoder_decoder",
            "is_decoder",
            "cross_attention_hidden_size",
            "tie_encoder_decoder",
            "add_cross_attention",
        ),
        "encoders; a causal model of these families has none",
    ),
}
"""Keys of any family that cannot change the function of one forward pass, and why."""


_WHOLE = "a model whose heads are cut out has other sums than its weights say"
_NUMBERS = "weights are compared as numbers; give the model dequantised"


class Config:
    """A config that knows which of its keys were read.

    >>> c = Config("toy", {"hidden_size": 8, "use_cache": True})
    >>> c.get("hidden_size")
    8
    >>> c.close()
    """

    def __init__(self, family: str, values: Mapping[str, Any]) -> None:
        self.family = family
        self._values = dict(values)
        self._read: set[str] = set()
        self.irrelevant: dict[str, str] = dict(IRRELEVANT)

    def get(self, *spellings: str, default: Any = MISSING, like: Any = None) -> Any:
        """The value under any of its spellings.

        It is of the kind of the default, or of `like` where the default is None; what is required is a size.
        Raises ConfigError if it is required and absent, or of another kind.
        """
        self._read.update(spellings)
        for key in spellings:
            if self._values.get(key) is not None:
                return checked(
                    key, self._values[key], 1 if default is MISSING else like if default is None else default
                )
        if default is MISSING:
            raise ConfigError(
                f"the config has no {spellings[0]!r}, which {self.family} needs; "
                f"add it to config.json or use a complete checkpoint"
            )
        return default

    def optional(self, key: str, default: Any, like: Any = None) -> Any:
        """The value, None where the config says so, and the default where it says nothing; kinds as in `get`."""
        return self.get(key, default=None, like=like if default is None else default) if self.has(key) else default

    def has(self, key: str) -> bool:
        """Whether the key is there at all, even as null."""
        self._read.add(key)
        return key in self._values

    def understand(self, key: str, written: Any, meant: Any) -> None:
        """A value that released configs have and that stands for another one."""
        if self._values.get(key) == written:
            self._values[key] = meant

    def ignore(self, reason: str, *keys: str) -> None:
        """Declare keys irrelevant for this family."""
        self.irrelevant.update(dict.fromkeys(keys, reason))

    def require(self, key: str, value: Any, why: str) -> None:
        """A key that this family understands with one value only."""
        found = self.get(key, default=value)
        if found != value:
            raise ConfigError(
                f"the config says {key}={short(found)}; {self.family} is declared for {value!r} only: {why}"
            )

    @property
    def unread(self) -> dict[str, Any]:
        """Keys that nobody read and nobody declared irrelevant."""
        return {
            k: v for k, v in self._values.items() if v is not None and k not in self._read and k not in self.irrelevant
        }

    def close(self) -> None:
        """Raises ConfigError if a key is left that could change the function."""
        self.require("pruned_heads", {}, _WHOLE)
        how = self.get("quantization_config", default={})
        if "gguf" not in str(how.get("quant_method")).lower():  # of which transformers makes numbers as it reads it
            self.require("quantization_config", {}, _NUMBERS)
        if self.unread:
            listed = ", ".join(f"{k}={short(v)}" for k, v in self.unread.items())
            raise ConfigError(
                f"the config has keys that {self.family} does not know and that could change "
                f"what it computes: {listed}; remove them from config.json, or declare them in "
                f"twinlens/families/{self.family}.py"
            )

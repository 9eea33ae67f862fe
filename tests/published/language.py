"""Language and speech models of `transformers`, from small configurations and random weights."""

from __future__ import annotations

import torch
from torch import nn

from published import network

WORDS, TIME = 7, 5
QK, VO = ("head{0}:2", "qk{0}:4"), ("head{0}:2", "vo{0}:4")
WITHIN = {"(?:qk|vo)(.*)": r"head\1"}


class First(nn.Module):
    """The first output of a model alone: its logits."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, *inputs):
        return self.model(*inputs)[0]


def tokens(time: int = TIME):
    return torch.arange(2 * time).reshape(2, time) % (WORDS - 3) + 3


def build(package, kind: str, *inputs, config: str | None = None, **options):
    """A model of a small configuration; without inputs, for tokens."""
    defaults = {"vocab_size": WORDS, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    name = config or kind[: kind.index("For")] + "Config"
    return First(getattr(package, kind)(getattr(package, name)(**defaults | options))), inputs or (tokens(),)


SMALL = {
    "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 6,
    "max_position_embeddings": TIME,
}  # fmt: skip


def under(prefix: str, sites: dict) -> dict:
    """Patterns below a module."""
    return {prefix + pattern: terms for pattern, terms in sites.items()}


def projections(query: str, key: str, value: str, out: str, stream: str = "s", source: str | None = None) -> dict:
    """Separate projections of an attention layer, from the stream or from that of an encoder."""
    source = source or stream
    return {
        rf"{query}\.weight": (QK, stream), rf"{query}\.bias": (QK,),
        rf"{key}\.weight": (QK, source), rf"{key}\.bias": (QK,),
        rf"{value}\.weight": (VO, source), rf"{value}\.bias": (VO,),
        rf"{out}\.weight": (stream, VO), rf"{out}\.bias": (stream,),
    }  # fmt: skip


def mlp(up: str, down: str, stream: str = "s") -> dict:
    return {
        rf"{up}\.weight": ("mlp{0}", stream), rf"{up}\.bias": ("mlp{0}",),
        rf"{down}\.weight": (stream, "mlp{0}"), rf"{down}\.bias": (stream,),
    }  # fmt: skip


# -- encoders and decoders with learned positions ----------------------------------------------------------------------


@network(
    "transformers",
    under(
        r"model\.transformer\.",
        {
            r"wte\.weight": (None, "s"),
            r"wpe\.weight": (None, "s"),
            r"(?:h\.\d+\.ln_[12]|ln_f)\.(?:weight|bias)": ("s",),
            r"h\.(\d+)\.attn\.c_attn\.weight": ("s", [QK, QK, VO]),
            r"h\.(\d+)\.attn\.c_attn\.bias": ([QK, QK, VO],),
            r"h\.(\d+)\.attn\.c_proj\.weight": (VO, "s"),
            r"h\.(\d+)\.mlp\.c_fc\.weight": ("s", "mlp{0}"),
            r"h\.(\d+)\.mlp\.c_fc\.bias": ("mlp{0}",),
            r"h\.(\d+)\.mlp\.c_proj\.weight": ("mlp{0}", "s"),
            r"h\.(\d+)\.(?:attn|mlp)\.c_proj\.bias": ("s",),
        },
    ),
    within=WITHIN,
)
def gpt2(package):
    """The output layer is the embedding; the packed projection is input by output."""
    return build(
        package, "GPT2LMHeadModel", config="GPT2Config", n_positions=TIME, n_embd=8, n_layer=2, n_head=2, n_inner=6,
        use_cache=False,
    )  # fmt: skip


BERT_LAYER = {
    **projections(
        r"(\d+)\.attention\.self\.query", r"(\d+)\.attention\.self\.key", r"(\d+)\.attention\.self\.value",
        r"(\d+)\.attention\.output\.dense",
    ),
    **mlp(r"(\d+)\.intermediate\.dense", r"(\d+)\.output\.dense"),
    r"\d+\.(?:attention\.)?output\.LayerNorm\.(?:weight|bias)": ("s",),
}  # fmt: skip


def bert_like(model: str, head: dict) -> dict:
    return {
        rf"model\.{model}\.embeddings\.(?:word|position|token_type)_embeddings\.weight": (None, "s"),
        rf"model\.{model}\.embeddings\.LayerNorm\.(?:weight|bias)": ("s",),
        **under(rf"model\.{model}\.encoder\.layer\.", BERT_LAYER),
        **head,
    }


@network(
    "transformers",
    bert_like(
        "bert",
        {
            r"model\.cls\.predictions\.transform\.dense\.weight": ("s", "s"),
            r"model\.cls\.predictions\.transform\.(?:dense\.bias|LayerNorm\.weight|LayerNorm\.bias)": ("s",),
        },
    ),
    within=WITHIN,
)
def bert(package):
    """The head's transformation ends in the embedding, so that both of its axes are the stream."""
    return build(package, "BertForMaskedLM", **SMALL, type_vocab_size=1)


@network(
    "transformers",
    bert_like(
        "roberta",
        {
            r"model\.lm_head\.dense\.weight": ("s", "s"),
            r"model\.lm_head\.(?:dense\.bias|layer_norm\.weight|layer_norm\.bias)": ("s",),
        },
    ),
    within=WITHIN,
    slow=True,
)
def roberta(package):
    return build(package, "RobertaForMaskedLM", **SMALL | {"max_position_embeddings": TIME + 1}, type_vocab_size=1)


@network(
    "transformers",
    {
        r"model\.distilbert\.embeddings\.(?:word|position)_embeddings\.weight": (None, "s"),
        r"model\.(?:distilbert\.embeddings\.LayerNorm|vocab_layer_norm)\.(?:weight|bias)": ("s",),
        **under(
            r"model\.distilbert\.transformer\.layer\.",
            {
                **projections(*(rf"(\d+)\.attention\.{p}_lin" for p in ("q", "k", "v", "out"))),
                **mlp(r"(\d+)\.ffn\.lin1", r"(\d+)\.ffn\.lin2"),
                r"\d+\.(?:sa|output)_layer_norm\.(?:weight|bias)": ("s",),
            },
        ),
        r"model\.vocab_transform\.weight": ("s", "s"),
        r"model\.vocab_transform\.bias": ("s",),
    },
    within=WITHIN,
)
def distilbert(package):
    return build(
        package, "DistilBertForMaskedLM", config="DistilBertConfig", max_position_embeddings=TIME, n_layers=2,
        n_heads=2, dim=8, hidden_dim=6,
    )  # fmt: skip


@network(
    "transformers",
    {
        r"model\.electra\.embeddings\.(?:word|position|token_type)_embeddings\.weight": (None, "e"),
        r"model\.electra\.embeddings\.LayerNorm\.(?:weight|bias)": ("e",),
        r"model\.electra\.embeddings_project\.weight": ("s", "e"),
        r"model\.electra\.embeddings_project\.bias": ("s",),
        **under(r"model\.electra\.encoder\.layer\.", BERT_LAYER),
        r"model\.generator_predictions\.dense\.weight": ("e", "s"),
        r"model\.generator_predictions\.(?:dense\.bias|LayerNorm\.weight|LayerNorm\.bias)": ("e",),
    },
    within=WITHIN,
    slow=True,
)
def electra(package):
    """Embeddings narrower than the stream."""
    return build(package, "ElectraForMaskedLM", **SMALL, embedding_size=6, type_vocab_size=1)


ALBERT = r"model\.albert\.encoder\.albert_layer_groups\.0\.albert_layers\."


@network(
    "transformers",
    {
        r"model\.albert\.embeddings\.(?:word|position|token_type)_embeddings\.weight": (None, "e"),
        r"model\.albert\.embeddings\.LayerNorm\.(?:weight|bias)": ("e",),
        r"model\.albert\.encoder\.embedding_hidden_mapping_in\.weight": ("s", "e"),
        r"model\.albert\.encoder\.embedding_hidden_mapping_in\.bias": ("s",),
        **under(
            ALBERT,
            {
                **projections(*(rf"(\d+)\.attention\.{p}" for p in ("query", "key", "value", "dense"))),
                **mlp(r"(\d+)\.ffn", r"(\d+)\.ffn_output"),
                r"\d+\.(?:full_layer_layer_norm|attention\.LayerNorm)\.(?:weight|bias)": ("s",),
            },
        ),
        r"model\.predictions\.dense\.weight": ("e", "s"),
        r"model\.predictions\.(?:dense\.bias|LayerNorm\.weight|LayerNorm\.bias)": ("e",),
    },
    within=WITHIN,
)
def albert(package):
    """One layer, applied twice."""
    return build(package, "AlbertForMaskedLM", **SMALL, embedding_size=6, type_vocab_size=1)


@network(
    "transformers",
    {
        r"model\.model\.decoder\.embed_(?:tokens|positions)\.weight": (None, "s"),
        r"model\.model\.decoder\.(?:layers\.\d+\.(?:self_attn_|final_)|final_)layer_norm\.(?:weight|bias)": ("s",),
        **under(
            r"model\.model\.decoder\.layers\.",
            {
                **projections(*(rf"(\d+)\.self_attn\.{p}_proj" for p in ("q", "k", "v", "out"))),
                **mlp(r"(\d+)\.fc1", r"(\d+)\.fc2"),
            },
        ),
    },
    within=WITHIN,
)
def opt(package):
    return build(
        package, "OPTForCausalLM", hidden_size=8, num_hidden_layers=2, num_attention_heads=2, ffn_dim=6,
        max_position_embeddings=TIME, word_embed_proj_dim=8, use_cache=False,
    )  # fmt: skip


# -- encoder and decoder -----------------------------------------------------------------------------------------------


def seq2seq_layer(kind: str, stream: str, source: str, cross: bool, prefix: str) -> dict:
    """A layer of BART's or Whisper's encoder or decoder; atoms are named after the kind and the number of the layer."""

    def own(sites: dict, part: str) -> dict:
        rename = {"head{0}:2": f"head{part}{{0}}:2", "qk{0}:4": f"qk{part}{{0}}:4", "vo{0}:4": f"vo{part}{{0}}:4"}
        named = lambda t: tuple(rename[a] for a in t) if isinstance(t, tuple) else t  # noqa: E731
        return {k: tuple(map(named, v)) for k, v in sites.items()}

    names = ("q", "k", "v", "out")
    sites = own(projections(*(rf"(\d+)\.self_attn\.{p}_proj" for p in names), stream), kind)
    if cross:
        other = projections(*(rf"(\d+)\.encoder_attn\.{p}_proj" for p in names), stream, source)
        sites |= own(other, "cross")
    up_down = mlp(r"(\d+)\.fc1", r"(\d+)\.fc2", stream)
    sites |= {k: tuple(t.replace("mlp", f"mlp{kind}") for t in v) for k, v in up_down.items()}
    return under(prefix, sites)


def without_key_bias(sites: dict) -> dict:
    return {k: v for k, v in sites.items() if r"k_proj\.bias" not in k}


BART = r"model\.model\."


@network(
    "transformers",
    {
        rf"{BART}shared\.weight": (None, "s"),
        rf"{BART}(?:encoder|decoder)\.embed_positions\.weight": (None, "s"),
        rf"{BART}.*(?:layernorm_embedding|layer_norm)\.(?:weight|bias)": ("s",),
        **seq2seq_layer("E", "s", "s", False, rf"{BART}encoder\.layers\."),
        **seq2seq_layer("D", "s", "s", True, rf"{BART}decoder\.layers\."),
    },
    within=WITHIN,
)
def bart(package):
    """Both streams begin in one embedding, so they are one."""
    return build(
        package, "BartForConditionalGeneration", tokens(), None, tokens(), d_model=8, encoder_layers=1,
        max_position_embeddings=TIME, decoder_layers=1, encoder_ffn_dim=6, decoder_ffn_dim=6,
        encoder_attention_heads=2, decoder_attention_heads=2, use_cache=False,
    )  # fmt: skip


@network(
    "transformers",
    {
        rf"{BART}encoder\.conv1\.weight": ("conv", None, None),
        rf"{BART}encoder\.conv1\.bias": ("conv",),
        rf"{BART}encoder\.conv2\.weight": ("e", "conv", None),
        rf"{BART}encoder\.conv2\.bias": ("e",),
        rf"{BART}encoder\.embed_positions\.weight": (None, "e"),
        rf"{BART}encoder\..*layer_norm\.(?:weight|bias)": ("e",),
        **without_key_bias(seq2seq_layer("E", "e", "e", False, rf"{BART}encoder\.layers\.")),
        rf"{BART}decoder\.embed_(?:tokens|positions)\.weight": (None, "d"),
        rf"{BART}decoder\..*layer_norm\.(?:weight|bias)": ("d",),
        **without_key_bias(seq2seq_layer("D", "d", "e", True, rf"{BART}decoder\.layers\.")),
    },
    within=WITHIN,
)
def whisper(package):
    """Sound and text have streams of their own; cross attention reads one and writes to the other."""
    return build(
        package, "WhisperForConditionalGeneration", torch.randn(2, 3, 2 * TIME), None, tokens(), d_model=8,
        num_mel_bins=3, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=6, decoder_ffn_dim=6,
        encoder_attention_heads=2, decoder_attention_heads=2, max_source_positions=TIME, max_target_positions=TIME,
        decoder_start_token_id=1, use_cache=False,
    )  # fmt: skip


T5_QK, T5_VO = ("head{0}:2", "qk{0}{1}{2}:3"), ("head{0}:2", "vo{0}{1}{2}:3")
CROSS_QK, CROSS_VO = ("headx{0}:2", "qkx{0}:3"), ("headx{0}:2", "vox{0}:3")


@network(
    "transformers",
    {
        r"model\.shared\.weight": (None, "s"),
        r"model\.(?:encoder|decoder)\..*layer_norm\.weight": ("s",),
        r"model\.(encoder|decoder)\.block\.0\.layer\.0\.SelfAttention\.relative_attention_bias\.weight": (
            None,
            "head{0}",
        ),
        r"model\.(encoder|decoder)\.block\.(\d+)\.layer\.(0)\.SelfAttention\.[qk]\.weight": (T5_QK, "s"),
        r"model\.(encoder|decoder)\.block\.(\d+)\.layer\.(0)\.SelfAttention\.v\.weight": (T5_VO, "s"),
        r"model\.(encoder|decoder)\.block\.(\d+)\.layer\.(0)\.SelfAttention\.o\.weight": ("s", T5_VO),
        r"model\.decoder\.block\.(\d+)\.layer\.1\.EncDecAttention\.[qk]\.weight": (CROSS_QK, "s"),
        r"model\.decoder\.block\.(\d+)\.layer\.1\.EncDecAttention\.v\.weight": (CROSS_VO, "s"),
        r"model\.decoder\.block\.(\d+)\.layer\.1\.EncDecAttention\.o\.weight": ("s", CROSS_VO),
        r"model\.(encoder|decoder)\.block\.(\d+)\.layer\.\d\.DenseReluDense\.wi_[01]\.weight": ("mlp{0}{1}", "s"),
        r"model\.(encoder|decoder)\.block\.(\d+)\.layer\.\d\.DenseReluDense\.wo\.weight": ("s", "mlp{0}{1}"),
    },
    within={"(?:qk|vo)(encoder|decoder).*": r"head\1", r"(?:qk|vo)(x\d+)": r"head\1"},
)
def t5(package):
    """The first layer's table of relative positions serves all layers of a stack, and so ties their heads."""
    return build(
        package, "T5ForConditionalGeneration", tokens(), None, tokens(), d_model=8, d_kv=3, d_ff=6, num_layers=2,
        num_heads=2, feed_forward_proj="gated-gelu", tie_word_embeddings=True, use_cache=False,
        relative_attention_num_buckets=8,
    )  # fmt: skip


# -- rotary embeddings -------------------------------------------------------------------------------------------------

# Rotary frequencies are different for each pair of dimensions, so queries' and keys' dimensions keep their order.
GROUPED = {**SMALL, "hidden_size": 16, "num_attention_heads": 4, "num_key_value_heads": 2, "use_cache": False}
Q, K, V, OUT = (
    ("kv{0}:2", "group{0}:2", 4),
    ("kv{0}:2", 4),
    ("kv{0}:2", "vo{0}:4"),
    ("kv{0}:2", "group{0}:2", "vo{0}:4"),
)
GROUPS = {"(?:group|vo)(.*)": r"kv\1"}
LAYERS = r"model\.model\.layers\."


def grouped(norms: str, *, attention: str = "self_attn", gate: tuple[str, ...] = ("gate", "up"), tied: bool = False):
    """Grouped-query attention and a gated MLP: Llama and its descendants."""
    return {
        r"model\.model\.embed_tokens\.weight": (None, "s"),
        **({} if tied else {r"model\.lm_head\.weight": (None, "s")}),
        **({rf"model\.model\.(?:{norms})\.(?:weight|bias)": ("s",)} if norms else {}),
        rf"{LAYERS}(\d+)\.{attention}\.q_proj\.weight": (Q, "s"),
        rf"{LAYERS}(\d+)\.{attention}\.k_proj\.weight": (K, "s"),
        rf"{LAYERS}(\d+)\.{attention}\.v_proj\.weight": (V, "s"),
        rf"{LAYERS}(\d+)\.{attention}\.o_proj\.weight": ("s", OUT),
        rf"{LAYERS}(\d+)\.mlp\.(?:{'|'.join(gate)})_proj\.weight": ("mlp{0}", "s"),
        rf"{LAYERS}(\d+)\.mlp\.down_proj\.weight": ("s", "mlp{0}"),
    }


NORMS = r"norm|layers\.\d+\.(?:input|post_attention)_layernorm"
BIASES = {
    rf"{LAYERS}(\d+)\.self_attn\.q_proj\.bias": (Q,),
    rf"{LAYERS}(\d+)\.self_attn\.k_proj\.bias": (K,),
    rf"{LAYERS}(\d+)\.self_attn\.v_proj\.bias": (V,),
}


@network("transformers", grouped(NORMS), within=GROUPS)
def llama(package):
    """Rotary embedding, grouped queries, gated MLP, RMSNorm."""
    return build(package, "LlamaForCausalLM", **GROUPED)


@network("transformers", grouped(NORMS), within=GROUPS, slow=True)
def mistral(package):
    """The same, through a sliding window."""
    return build(package, "MistralForCausalLM", **GROUPED, sliding_window=3)


@network("transformers", {**grouped(NORMS, tied=True), **BIASES}, within=GROUPS)
def qwen2(package):
    return build(package, "Qwen2ForCausalLM", **GROUPED, tie_word_embeddings=True)


@network("transformers", grouped(NORMS), within=GROUPS, slow=True)
def qwen3(package):
    """Queries and keys normalized, with one scale for all heads."""
    return build(package, "Qwen3ForCausalLM", **GROUPED, head_dim=4)


@network("transformers", grouped(NORMS, tied=True), within=GROUPS, slow=True)
def gemma(package):
    """The embedding, scaled, is the output layer too."""
    return build(package, "GemmaForCausalLM", **GROUPED, head_dim=4)


MORE_NORMS = NORMS + r"|layers\.\d+\.(?:pre|post)_feedforward_layernorm"


@network("transformers", grouped(MORE_NORMS, tied=True), within=GROUPS)
def gemma2(package):
    return build(package, "Gemma2ForCausalLM", **GROUPED, head_dim=4, sliding_window=3, query_pre_attn_scalar=4)


@network("transformers", grouped(MORE_NORMS, tied=True), within=GROUPS, slow=True)
def gemma3(package):
    return build(
        package, "Gemma3ForCausalLM", config="Gemma3TextConfig", **GROUPED, head_dim=4, sliding_window=3,
        query_pre_attn_scalar=4,
    )  # fmt: skip


@network("transformers", grouped(""), within=GROUPS, slow=True)
def olmo(package):
    """LayerNorm without parameters."""
    return build(package, "OlmoForCausalLM", **GROUPED)


@network("transformers", grouped(r"norm|layers\.\d+\.input_layernorm", tied=True), within=GROUPS, slow=True)
def cohere(package):
    """Attention and MLP in parallel."""
    return build(package, "CohereForCausalLM", **GROUPED)


@network(
    "transformers",
    {
        **{k: v for k, v in grouped(NORMS, tied=True).items() if ".mlp" not in k},
        **BIASES,
        rf"{LAYERS}\d+\.self_attn\.o_proj\.bias": ("s",),
        **under(LAYERS, mlp(r"(\d+)\.mlp\.c_fc", r"(\d+)\.mlp\.c_proj")),
    },
    within=GROUPS,
)
def starcoder2(package):
    return build(package, "Starcoder2ForCausalLM", **GROUPED)


@network(
    "transformers",
    {
        **{k: v for k, v in grouped(NORMS).items() if not any(p in k for p in ("q_proj", "k_proj", "v_proj", "gate"))},
        rf"{LAYERS}(\d+)\.self_attn\.qkv_proj\.weight": ([Q, K, V], "s"),
        rf"{LAYERS}(\d+)\.mlp\.gate_up_proj\.weight": (["mlp{0}", "mlp{0}"], "s"),
    },
    within=GROUPS,
)
def phi3(package):
    """Packed: queries, keys and values; gate and values of the MLP."""
    return build(package, "Phi3ForCausalLM", **GROUPED)


PARTLY = ("head{0}:2", [2, "qk{0}:2"])  # half of each head's dimensions are rotated


@network(
    "transformers",
    {
        r"model\.gpt_neox\.embed_in\.weight": (None, "s"),
        r"model\.lm_head\.weight": (None, "s"),
        r"model\.gpt_neox\..*(?:layernorm|layer_norm)\.(?:weight|bias)": ("s",),
        **under(
            r"model\.gpt_neox\.layers\.",
            {
                r"(\d+)\.attention\.query_key_value\.weight": (
                    ("head{0}:2", [2, "qk{0}:2", 2, "qk{0}:2", "vo{0}:4"]), "s"
                ),
                r"(\d+)\.attention\.query_key_value\.bias": (("head{0}:2", [2, "qk{0}:2", 2, "qk{0}:2", "vo{0}:4"]),),
                r"(\d+)\.attention\.dense\.weight": ("s", VO),
                r"(\d+)\.attention\.dense\.bias": ("s",),
                **mlp(r"(\d+)\.mlp\.dense_h_to_4h", r"(\d+)\.mlp\.dense_4h_to_h"),
            },
        ),
    },
    within=WITHIN,
)  # fmt: skip
def gptneox(package):
    """Packed head by head; half of the dimensions rotated, the others free."""
    rotation = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    return build(
        package, "GPTNeoXForCausalLM", **SMALL, rope_parameters=rotation, tie_word_embeddings=False, use_cache=False
    )


@network(
    "transformers",
    {
        r"model\.transformer\.wte\.weight": (None, "s"),
        r"model\.lm_head\.weight": (None, "s"),
        r"model\.transformer\.(?:h\.\d+\.ln_1|ln_f)\.(?:weight|bias)": ("s",),
        **under(
            r"model\.transformer\.h\.",
            {
                r"(\d+)\.attn\.[qk]_proj\.weight": (PARTLY, "s"),
                r"(\d+)\.attn\.v_proj\.weight": (VO, "s"),
                r"(\d+)\.attn\.out_proj\.weight": ("s", VO),
                **mlp(r"(\d+)\.mlp\.fc_in", r"(\d+)\.mlp\.fc_out"),
            },
        ),
    },
    within=WITHIN,
)
def gptj(package):
    """Neighboring dimensions are rotated together."""
    return build(
        package, "GPTJForCausalLM", n_positions=TIME, n_embd=8, n_layer=2, n_head=2, rotary_dim=2, n_inner=6,
        use_cache=False,
    )  # fmt: skip


@network(
    "transformers",
    {
        r"model\.model\.embed_tokens\.weight": (None, "s"),
        r"model\.lm_head\.weight": (None, "s"),
        r"model\.model\.(?:final_layernorm|layers\.\d+\.input_layernorm)\.(?:weight|bias)": ("s",),
        rf"{LAYERS}(\d+)\.self_attn\.[qk]_proj\.weight": (PARTLY, "s"),
        rf"{LAYERS}(\d+)\.self_attn\.[qk]_proj\.bias": (PARTLY,),
        rf"{LAYERS}(\d+)\.self_attn\.v_proj\.weight": (VO, "s"),
        rf"{LAYERS}(\d+)\.self_attn\.v_proj\.bias": (VO,),
        rf"{LAYERS}(\d+)\.self_attn\.dense\.weight": ("s", VO),
        rf"{LAYERS}(\d+)\.self_attn\.dense\.bias": ("s",),
        **under(LAYERS, mlp(r"(\d+)\.mlp\.fc1", r"(\d+)\.mlp\.fc2")),
    },
    within=WITHIN,
    slow=True,
)
def phi(package):
    rotation = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    return build(package, "PhiForCausalLM", **SMALL, rope_parameters=rotation, use_cache=False)


FALCON = r"model\.transformer\."


def falcon(rows) -> dict:
    return {
        rf"{FALCON}word_embeddings\.weight": (None, "s"),
        rf"{FALCON}(?:h\.\d+\.(?:input_layernorm|ln_attn|ln_mlp)|ln_f)\.(?:weight|bias)": ("s",),
        rf"{FALCON}h\.(\d+)\.mlp\.dense_h_to_4h\.weight": ("mlp{0}", "s"),
        rf"{FALCON}h\.(\d+)\.mlp\.dense_4h_to_h\.weight": ("s", "mlp{0}"),
        rf"{FALCON}h\.(\d+)\.self_attention\.query_key_value\.weight": (rows, "s"),
    }


@network(
    "transformers",
    {
        **falcon([("head{0}:2", 4), 4, "vo{0}:4"]),
        rf"{FALCON}h\.(\d+)\.self_attention\.dense\.weight": ("s", ("head{0}:2", "vo{0}:4")),
    },
)
def falcon_multi_query(package):
    """One key and one value for all heads: the value's dimensions are the same in each."""
    return build(
        package, "FalconForCausalLM", hidden_size=8, num_hidden_layers=2, num_attention_heads=2, ffn_hidden_size=6,
        multi_query=True, new_decoder_architecture=False, parallel_attn=True, alibi=False, use_cache=False,
    )  # fmt: skip


@network(
    "transformers",
    {
        **falcon(("kv{0}:2", [("group{0}:2", 4), 4, "vo{0}:4"])),
        rf"{FALCON}h\.(\d+)\.self_attention\.dense\.weight": ("s", OUT),
    },
    within=GROUPS,
)
def falcon_grouped(package):
    """Packed group by group."""
    return build(
        package, "FalconForCausalLM", hidden_size=16, num_hidden_layers=2, num_attention_heads=4, num_kv_heads=2,
        ffn_hidden_size=6, new_decoder_architecture=True, alibi=False, use_cache=False,
    )  # fmt: skip


# -- heads told apart by their slopes (ALiBi) --------------------------------------------------------------------------

ALIBI_QK, ALIBI_VO = ("head{0}!:2", "qk{0}:4"), ("head{0}!:2", "vo{0}:4")
IN_HEADS = {"(?:qk|vo)(.*)": r"head\1!"}


@network(
    "transformers",
    {
        rf"{FALCON}word_embeddings\.weight": (None, "s"),
        rf"{FALCON}(?:word_embeddings_layernorm|ln_f|h\.\d+\.\w+_layernorm)\.(?:weight|bias)": ("s",),
        rf"{FALCON}h\.(\d+)\.self_attention\.query_key_value\.weight": (
            ("head!:2", ["qk{0}:4", "qk{0}:4", "vo{0}:4"]), "s"
        ),
        rf"{FALCON}h\.(\d+)\.self_attention\.query_key_value\.bias": (("head!:2", ["qk{0}:4", "qk{0}:4", "vo{0}:4"]),),
        rf"{FALCON}h\.(\d+)\.self_attention\.dense\.weight": ("s", ("head!:2", "vo{0}:4")),
        rf"{FALCON}h\.\d+\.self_attention\.dense\.bias": ("s",),
        **under(rf"{FALCON}h\.", mlp(r"(\d+)\.mlp\.dense_h_to_4h", r"(\d+)\.mlp\.dense_4h_to_h")),
    },
    within={"(?:qk|vo).*": "head!"},
)  # fmt: skip
def bloom(package):
    """Each head has a slope of its own, so heads keep their order, and their dimensions are free in each."""
    return build(package, "BloomForCausalLM", hidden_size=8, n_layer=2, n_head=2, use_cache=False)


@network(
    "transformers",
    {
        rf"{FALCON}wte\.weight": (None, "s"),
        rf"{FALCON}(?:blocks\.\d+\.norm_[12]|norm_f)\.weight": ("s",),
        rf"{FALCON}blocks\.(\d+)\.attn\.Wqkv\.weight": ([ALIBI_QK, ALIBI_QK, ALIBI_VO], "s"),
        rf"{FALCON}blocks\.(\d+)\.attn\.out_proj\.weight": ("s", ALIBI_VO),
        rf"{FALCON}blocks\.(\d+)\.ffn\.up_proj\.weight": ("mlp{0}", "s"),
        rf"{FALCON}blocks\.(\d+)\.ffn\.down_proj\.weight": ("s", "mlp{0}"),
    },
    within=IN_HEADS,
    slow=True,
)
def mpt(package):
    return build(
        package, "MptForCausalLM", d_model=8, n_heads=2, n_layers=2, expansion_ratio=1, max_seq_len=TIME,
        use_cache=False,
    )  # fmt: skip


# -- other mixers ------------------------------------------------------------------------------------------------------

MAMBA = r"model\.backbone\."


@network(
    "transformers",
    {
        rf"{MAMBA}embeddings\.weight": (None, "s"),
        r"model\.lm_head\.weight": (None, "s"),
        rf"{MAMBA}(?:norm_f|layers\.\d+\.norm)\.weight": ("s",),
        **under(
            rf"{MAMBA}layers\.",
            {
                r"(\d+)\.mixer\.A_log": ("inner{0}", "state{0}"),
                r"(\d+)\.mixer\.(?:D|dt_proj\.bias|conv1d\.bias)": ("inner{0}",),
                r"(\d+)\.mixer\.conv1d\.weight": ("inner{0}", None, None),
                r"(\d+)\.mixer\.in_proj\.weight": (["inner{0}:8", "inner{0}:8"], "s"),
                r"(\d+)\.mixer\.x_proj\.weight": (["rank{0}:2", "state{0}:3", "state{0}:3"], "inner{0}"),
                r"(\d+)\.mixer\.dt_proj\.weight": ("inner{0}", "rank{0}"),
                r"(\d+)\.mixer\.out_proj\.weight": ("s", "inner{0}"),
            },
        ),
    },
)
def mamba(package):
    """A scan over time, written out: channels, states and the rank of the step size."""
    return build(
        package, "MambaForCausalLM", hidden_size=8, state_size=3, num_hidden_layers=2, expand=1, conv_kernel=2,
        time_step_rank=2, tie_word_embeddings=False, use_cache=False,
    )  # fmt: skip


FNET = r"model\.fnet\."


@network(
    "transformers",
    {
        rf"{FNET}embeddings\.\w+_embeddings\.weight": (None, "e"),
        rf"{FNET}embeddings\.LayerNorm\.(?:weight|bias)": ("e",),
        rf"{FNET}embeddings\.projection\.weight": (None, "e"),
        rf"{FNET}encoder\.layer\.(\d+)\.intermediate\.dense\.weight": ("mlp{0}", None),
        rf"{FNET}encoder\.layer\.(\d+)\.intermediate\.dense\.bias": ("mlp{0}",),
        rf"{FNET}encoder\.layer\.(\d+)\.output\.dense\.weight": (None, "mlp{0}"),
        r"model\.cls\.predictions\.transform\.dense\.weight": ("e", None),
        r"model\.cls\.predictions\.transform\.(?:dense\.bias|LayerNorm\.weight|LayerNorm\.bias)": ("e",),
    },
)
def fnet(package):
    """A Fourier transform over the stream keeps it in order; the embedding before it is free."""
    module, inputs = build(
        package, "FNetForMaskedLM", hidden_size=8, num_hidden_layers=2, intermediate_size=6,
        max_position_embeddings=TIME, type_vocab_size=1,
    )  # fmt: skip
    del module.model.fnet.pooler  # serves another task
    module.model.fnet.pooler = None
    return module, inputs


@network(
    "transformers",
    {
        **{k: v for k, v in grouped(NORMS).items() if ".mlp" not in k},
        rf"{LAYERS}(\d+)\.mlp\.gate\.weight": (None, "s"),
        rf"{LAYERS}(\d+)\.mlp\.experts\.gate_up_proj": (None, ["mlp{0}:6", "mlp{0}:6"], "s"),
        rf"{LAYERS}(\d+)\.mlp\.experts\.down_proj": (None, "s", "mlp{0}"),
    },
    within=GROUPS,
    # two experts of one layer, with the rows of the gate
    missed={
        ("model.model.layers.0.mlp.gate.weight", 0): [1, 0, 2],
        ("model.model.layers.0.mlp.experts.gate_up_proj", 0): [1, 0, 2],
        ("model.model.layers.0.mlp.experts.down_proj", 0): [1, 0, 2],
    },
    opaque=("aten.topk.default",),
)
def mixtral(package):
    """Experts chosen by their scores' order keep theirs, and their units are relabeled alike."""
    return build(
        package, "MixtralForCausalLM", **GROUPED, num_local_experts=3, num_experts_per_tok=2,
        tie_word_embeddings=False, experts_implementation="batched_mm",
    )  # fmt: skip

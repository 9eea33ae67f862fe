"""Vision models of `torchvision`, `timm` and `transformers`, from small configurations and random weights."""

from __future__ import annotations

import re

import torch
from torch import nn

from published import network
from published.language import First


def image(size: int = 16) -> torch.Tensor:
    return torch.randn(2, 3, size, size)


# -- tables of layers, by name: each is a dictionary of patterns -------------------------------------------------------


def conv(name: str, out, into, bias: bool = False) -> dict:
    """A convolution of an image, or a depthwise one (``into`` is 1: there is one input channel for each group)."""
    name = re.escape(name)
    return {rf"{name}\.weight": (out, into, None, None), **({rf"{name}\.bias": (out,)} if bias else {})}


def linear(name: str, out, into, bias: bool = True) -> dict:
    name = re.escape(name)
    return {rf"{name}\.weight": (out, into), **({rf"{name}\.bias": (out,)} if bias else {})}


def norm(names: str | list[str], channels) -> dict:
    """Normalization layers: weight, bias, and running statistics where there are any."""
    names = [names] if isinstance(names, str) else names
    return {rf"(?:{'|'.join(map(re.escape, names))})\.(?:weight|bias|running_mean|running_var)": (channels,)}


def table(*parts: dict) -> dict:
    out: dict = {}
    for part in parts:
        assert not set(part) & set(out), set(part) & set(out)
        out |= part
    return out


def heads(n: int, d: int, tag: str = ""):
    """Query-key and value-output axes of attention: heads, and dimensions within."""
    return (f"head{tag}:{n}", f"qk{tag}:{d}"), (f"head{tag}:{n}", f"vo{tag}:{d}")


WITHIN = {"(?:qk|vo)(.*)": r"head\1"}

# -- convolutional networks --------------------------------------------------------------------------------------------


@network(
    "torchvision",
    table(
        *(t for i, (out, into) in {0: ("a", None), 4: ("b", "a"), 7: ("c", "b")}.items()
          for t in (conv(f"features.{i}", out, into, True), norm(f"features.{i + 1}", out))),
        linear("classifier.0", "d", ("c:8", 4)),
        linear("classifier.3", None, "d"),
    ),
)  # fmt: skip
def vgg(package):
    """Flattened: channels times pixels."""
    make = package.models.vgg
    net = make.VGG(make.make_layers([4, "M", 6, 8, "M"], batch_norm=True), num_classes=5, init_weights=False)
    net.avgpool = nn.AdaptiveAvgPool2d(2)
    net.classifier = nn.Sequential(nn.Linear(32, 7), nn.ReLU(True), nn.Dropout(), nn.Linear(7, 5))
    return net, (image(),)


def bottleneck(name: str, stream: str, into: str, shortcut: bool, tag: str, groups: tuple | None = None) -> dict:
    """1 x 1, 3 x 3, 1 x 1; in groups, channels are free within their group, and groups as a whole."""
    first = (f"g{tag}:{groups[0]}", f"x{tag}:{groups[1]}") if groups else f"x{tag}"
    second = (f"g{tag}:{groups[0]}", f"y{tag}:{groups[1]}") if groups else f"y{tag}"
    return table(
        conv(f"{name}.conv1", first, into),
        norm(f"{name}.bn1", first),
        conv(f"{name}.conv2", second, f"x{tag}"),
        norm(f"{name}.bn2", second),
        conv(f"{name}.conv3", stream, second),
        norm(f"{name}.bn3", stream),
        *((conv(f"{name}.downsample.0", stream, into), norm(f"{name}.downsample.1", stream)) if shortcut else ()),
    )


def residual(blocks, groups=None) -> dict:
    parts, into = [conv("conv1", "stem", None), norm("bn1", "stem"), linear("fc", None, f"s{len(blocks)}")], "stem"
    for stage, count in enumerate(blocks, 1):
        for i in range(count):
            width = groups and (groups, 2**stage)
            parts.append(bottleneck(f"layer{stage}.{i}", f"s{stage}", into, i == 0, f"{stage}{i}", width))
            into = f"s{stage}"
    return table(*parts)


@network("torchvision", residual([2, 1, 1, 1]))
def resnet(package):
    """Bottlenecks and BatchNorm; the residual stream of a stage is one atom."""
    return package.models.ResNet(package.models.resnet.Bottleneck, [2, 1, 1, 1], 5, width_per_group=4), (image(32),)


@network("torchvision", residual([1, 1, 1, 2], groups=2), within={"[xy](.*)": r"g\1"}, slow=True)
def resnext(package):
    """The same in groups."""
    make = package.models.resnet.Bottleneck
    return package.models.ResNet(make, [1, 1, 1, 2], 5, groups=2, width_per_group=2), (image(32),)


def inverted(name: str, out: str, into: str, mid: str | None, excite: str | None, *, separate: bool = True) -> dict:
    """Expansion (unless ``mid`` is None), depthwise convolution, squeeze and excitation, projection: by position."""
    parts, i = [], 0
    if mid:
        parts += [conv(f"{name}.0.0", mid, into), norm(f"{name}.0.1", mid)]
        i = 1
    mid = mid or into
    parts += [conv(f"{name}.{i}.0", mid, None), norm(f"{name}.{i}.1", mid)]
    if excite:
        i += 1
        parts += [conv(f"{name}.{i}.fc1", excite, mid, True), conv(f"{name}.{i}.fc2", mid, excite, True)]
    last = (f"{name}.{i + 1}.0", f"{name}.{i + 1}.1") if separate else (f"{name}.{i + 1}", f"{name}.{i + 2}")
    return table(*parts, conv(last[0], out, mid), norm(last[1], out))


@network(
    "torchvision",
    table(
        conv("features.0.0", "a", None),
        norm("features.0.1", "a"),
        inverted("features.1.conv", "b", "a", None, None, separate=False),
        inverted("features.2.conv", "c", "b", "m2", None, separate=False),
        inverted("features.3.conv", "c", "c", "m3", None, separate=False),
        conv("features.4.0", "d", "c"),
        norm("features.4.1", "d"),
        linear("classifier.1", None, "d"),
    ),
)
def mobilenet_v2(package):
    setting = [[1, 4, 1, 1], [3, 8, 2, 2]]
    make = package.models.MobileNetV2
    return make(5, 0.5, inverted_residual_setting=setting, round_nearest=2), (image(),)


@network(
    "torchvision",
    table(
        conv("features.0.0", "a", None),
        norm("features.0.1", "a"),
        inverted("features.1.block", "b", "a", None, "e1"),
        inverted("features.2.block", "c", "b", "m2", None),
        inverted("features.3.block", "c", "c", "m3", "e3"),
        conv("features.4.0", "d", "c"),
        norm("features.4.1", "d"),
        linear("classifier.0", "e", "d"),
        linear("classifier.3", None, "e"),
    ),
)
def mobilenet_v3(package):
    """Squeeze and excitation, hard swish."""
    block = package.models.mobilenetv3.InvertedResidualConfig
    setting = [block(8, 3, 8, 8, True, "RE", 2, 1, 1), block(8, 3, 16, 16, False, "HS", 1, 1, 1),
               block(16, 3, 24, 16, True, "HS", 1, 1, 1)]  # fmt: skip
    return package.models.MobileNetV3(setting, last_channel=7, num_classes=5), (image(),)


@network(
    "torchvision",
    table(
        conv("features.0.0", "a", None),
        norm("features.0.1", "a"),
        inverted("features.1.0.block", "b", "a", None, "e1"),
        inverted("features.2.0.block", "c", "b", "m2", "e2"),
        inverted("features.2.1.block", "c", "c", "m3", "e3"),
        conv("features.3.0", "d", "c"),
        norm("features.3.1", "d"),
        linear("classifier.1", None, "d"),
    ),
)
def efficientnet(package):
    block = package.models.efficientnet.MBConvConfig
    setting = [block(1, 3, 1, 8, 16, 1, 1, 1), block(3, 3, 2, 16, 24, 2, 1, 1)]
    return package.models.EfficientNet(setting, 0.2, num_classes=5, last_channel=10), (image(),)


STATISTICS = ("weight", "bias", "running_mean", "running_var")


def shuffled(name: str, out: dict, into, mid: str, source=None) -> dict:
    """ShuffleNet's unit: half of the channels pass by. ``source`` is what both branches of a striding unit read."""
    branch = f"{name}.branch2"
    parts = [conv(f"{branch}.0", mid, into), norm(f"{branch}.1", mid), conv(f"{branch}.3", mid, None),
             norm(f"{branch}.4", mid), conv(f"{branch}.5", out, mid), norm(f"{branch}.6", out)]  # fmt: skip
    if source is not None:
        first = f"{name}.branch1"
        parts += [conv(f"{first}.0", source, None), norm(f"{first}.1", source), conv(f"{first}.2", out, source),
                  norm(f"{first}.3", out)]  # fmt: skip
    return table(*parts)


@network(
    "torchvision",
    table(
        conv("conv1.0", "a", None),
        norm("conv1.1", "a"),
        shuffled("stage2.0", ["p:2", "q:2"], "a", "m1", "a"),
        shuffled("stage2.1", ("p:2", 2), ("q:2", 2), "m2"),
        shuffled("stage3.0", "r", ("p:2", 4), "m3", ("p:2", 4)),
        shuffled("stage4.0", "t", ("r:6", 2), "m4", ("r:6", 2)),
        conv("conv5.0", "u", ("t:8", 2)),
        norm("conv5.1", "u"),
        linear("fc", None, "u"),
    ),
    # the first two channels of one branch alone: they come to lie at 0 and 2 of eight, between those of the other
    missed={
        ("stage2.0.branch1.2.weight", 0): [1, 0, 2, 3],
        **{(f"stage2.0.branch1.3.{kind}", 0): [1, 0, 2, 3] for kind in STATISTICS},
        ("stage3.0.branch1.0.weight", 0): [4, 1, 2, 3, 0, 5, 6, 7],
        **{(f"stage3.0.branch1.1.{kind}", 0): [4, 1, 2, 3, 0, 5, 6, 7] for kind in STATISTICS},
        ("stage3.0.branch1.2.weight", 1): [4, 1, 2, 3, 0, 5, 6, 7],
        ("stage3.0.branch2.0.weight", 1): [4, 1, 2, 3, 0, 5, 6, 7],
    },
)  # fmt: skip
def shufflenet(package):
    """Shuffled channels: the two that come to lie side by side move together, which is less than the network allows."""
    return package.models.ShuffleNetV2([2, 1, 1], [6, 8, 12, 16, 20], 5), (image(32),)


def dense_block(block: int, features: list[str], layers: int) -> tuple[dict, list[str]]:
    """Every layer reads all features before it and adds some; returns the table and the features."""
    parts = []
    for i in range(1, layers + 1):
        name, mid, new = f"features.denseblock{block}.denselayer{i}", f"m{block}{i}", f"n{block}{i}:4"
        seen = features if len(features) > 1 else features[0]
        parts += [norm(f"{name}.norm1", seen), conv(f"{name}.conv1", mid, seen), norm(f"{name}.norm2", mid),
                  conv(f"{name}.conv2", new, mid)]  # fmt: skip
        features = [*features, new]
    return table(*parts), features


def dense() -> dict:
    first, seen = dense_block(1, ["a:6"], 2)
    second, all_of_it = dense_block(2, ["t:7"], 2)
    return table(
        conv("features.conv0", "a", None), norm("features.norm0", "a"), first, norm("features.transition1.norm", seen),
        conv("features.transition1.conv", "t", seen), second, norm("features.norm5", all_of_it),
        linear("classifier", None, all_of_it),
    )  # fmt: skip


@network("torchvision", dense())
def densenet(package):
    """Concatenation: sums of atoms."""
    return package.models.DenseNet(4, (2, 2), 6, bn_size=2, num_classes=5), (image(32),)


def fire(i: int, into) -> dict:
    name = f"features.{i}"
    return table(
        conv(f"{name}.squeeze", f"q{i}", into, True), conv(f"{name}.expand1x1", f"e{i}", f"q{i}", True),
        conv(f"{name}.expand3x3", f"f{i}", f"q{i}", True),
    )  # fmt: skip


def squeezed() -> dict:
    parts, into = [conv("features.0", "a", None, True)], "a"
    for i, width in zip((3, 4, 6, 7, 9, 10, 11, 12), (64, 64, 128, 128, 192, 192, 256, 256), strict=True):
        parts.append(fire(i, into))
        into = [f"e{i}:{width}", f"f{i}:{width}"]
    return table(*parts, conv("classifier.1", None, into, True))


@network("torchvision", squeezed(), slow=True)
def squeezenet(package):
    return package.models.squeezenet1_1(num_classes=5), (image(32),)


def regnet_block(name: str, stream: str, into: str, groups: int, excite: str, tag: str) -> dict:
    first, second = (f"g{tag}:{groups}", f"x{tag}:4"), (f"g{tag}:{groups}", f"y{tag}:4")
    return table(
        conv(f"{name}.f.a.0", first, into), norm(f"{name}.f.a.1", first),
        conv(f"{name}.f.b.0", second, f"x{tag}"), norm(f"{name}.f.b.1", second),
        conv(f"{name}.f.se.fc1", excite, second, True), conv(f"{name}.f.se.fc2", second, excite, True),
        conv(f"{name}.f.c.0", stream, second), norm(f"{name}.f.c.1", stream),
        *((conv(f"{name}.proj.0", stream, into), norm(f"{name}.proj.1", stream)) if into != stream else ()),
    )  # fmt: skip


@network(
    "torchvision",
    table(
        conv("stem.0", "a", None),
        norm("stem.1", "a"),
        regnet_block("trunk_output.block1.block1-0", "b", "a", 2, "e0", "0"),
        regnet_block("trunk_output.block1.block1-1", "b", "b", 2, "e1", "1"),
        regnet_block("trunk_output.block2.block2-0", "c", "b", 3, "e2", "2"),
        linear("fc", None, "c"),
    ),
    within={"[xy](.*)": r"g\1"},
)
def regnet(package):
    """Groups: channels are free within each, and groups as a whole."""
    sizes = package.models.regnet.BlockParams([2, 1], [8, 12], [4, 4], [1, 1], [2, 2], 0.25)
    return package.models.RegNet(sizes, num_classes=5, stem_width=8), (image(32),)


def convnext_stage(i: int, channels: str, blocks: int) -> dict:
    parts = []
    for k in range(blocks):
        name, mid = f"features.{i}.{k}", f"m{i}{k}"
        parts += [
            {rf"features\.{i}\.{k}\.layer_scale": (channels, None, None)},
            conv(f"{name}.block.0", channels, None, True), norm(f"{name}.block.2", channels),
            linear(f"{name}.block.3", mid, channels), linear(f"{name}.block.5", channels, mid),
        ]  # fmt: skip
    return table(*parts)


@network(
    "torchvision",
    table(
        conv("features.0.0", "a", None, True),
        norm("features.0.1", "a"),
        convnext_stage(1, "a", 2),
        norm("features.2.0", "a"),
        conv("features.2.1", "b", "a", True),
        convnext_stage(3, "b", 1),
        norm("classifier.0", "b"),
        linear("classifier.2", None, "b"),
    ),
)
def convnext(package):
    """Depthwise convolution, LayerNorm over channels, a scale for each channel of a branch."""
    stage = package.models.convnext.CNBlockConfig
    return package.models.ConvNeXt([stage(4, 6, 2), stage(6, None, 1)], num_classes=5), (image(),)


@network(
    "timm",
    table(
        conv("stem.0", "s0", None, True),
        norm("stem.1", "s0"),
        *(table(
            *(() if i == 0 else (norm(f"stages.{i}.downsample.0", f"s{i - 1}"),
                                 conv(f"stages.{i}.downsample.1", f"s{i}", f"s{i - 1}", True))),
            conv(f"stages.{i}.blocks.0.conv_dw", f"s{i}", None, True), norm(f"stages.{i}.blocks.0.norm", f"s{i}"),
            conv(f"stages.{i}.blocks.0.mlp.fc1", f"m{i}", f"s{i}", True), norm(f"stages.{i}.blocks.0.mlp.grn", f"m{i}"),
            conv(f"stages.{i}.blocks.0.mlp.fc2", f"s{i}", f"m{i}", True),
        ) for i in range(4)),
        norm("head.norm", "s3"),
        linear("head.fc", None, "s3"),
    ),
    slow=True,
)  # fmt: skip
def convnext_v2(package):
    """Global response normalization."""
    return package.create_model("convnextv2_atto", num_classes=5, dims=(4, 6, 8, 10), depths=(1,) * 4), (image(32),)


def inception_branch(name: str, out, into) -> dict:
    return table(conv(f"{name}.conv", out, into), norm(f"{name}.bn", out))


def inception(name: str, into, sizes: tuple[int, ...]) -> tuple[dict, list[str]]:
    """Four branches of GoogLeNet, side by side."""
    outs = [f"{name}.{k}:{n}" for k, n in enumerate(sizes, 1)]
    parts = [
        inception_branch(f"{name}.branch1", outs[0], into),
        inception_branch(f"{name}.branch2.0", f"{name}.r2", into),
        inception_branch(f"{name}.branch2.1", outs[1], f"{name}.r2"),
        inception_branch(f"{name}.branch3.0", f"{name}.r3", into),
        inception_branch(f"{name}.branch3.1", outs[2], f"{name}.r3"),
        inception_branch(f"{name}.branch4.1", outs[3], into),
    ]
    return table(*parts), outs


def googlenet_table() -> dict:
    parts = [
        inception_branch("conv1", "a", None), inception_branch("conv2", "b", "a"), inception_branch("conv3", "c", "b")
    ]  # fmt: skip
    into: str | list[str] = "c"
    for name, *sizes in [
        ("3a", 64, 128, 32, 32), ("3b", 128, 192, 96, 64), ("4a", 192, 208, 48, 64), ("4b", 160, 224, 64, 64),
        ("4c", 128, 256, 64, 64), ("4d", 112, 288, 64, 64), ("4e", 256, 320, 128, 128), ("5a", 256, 320, 128, 128),
        ("5b", 384, 384, 128, 128),
    ]:  # fmt: skip
        part, into = inception(f"inception{name}", into, tuple(sizes))
        parts.append(part)
    return table(*parts, linear("fc", None, into))


@network("torchvision", googlenet_table(), slow=True)
def googlenet(package):
    """Branches side by side, at their published widths."""
    return package.models.GoogLeNet(num_classes=5, aux_logits=False, init_weights=False), (image(32),)


# -- transformers of images --------------------------------------------------------------------------------------------


def vit_block(name: str, names: dict, tag: str, *, bias: bool = True, scales: tuple[str, ...] = ()) -> dict:
    """A block with packed projections: stream ``s``, two heads of four dimensions."""
    qk, vo = heads(2, 4, tag)
    packed, mid = [qk, qk, vo], f"m{tag}"
    return table(
        norm([f"{name}.{names['norm1']}", f"{name}.{names['norm2']}"], "s"),
        {re.escape(f"{name}.{names['qkv']}") + "weight": (packed, "s")},
        {re.escape(f"{name}.{names['qkv']}") + "bias": (packed,)} if bias else {},
        linear(f"{name}.{names['proj']}", "s", vo),
        linear(f"{name}.{names['up']}", mid, "s"),
        linear(f"{name}.{names['down']}", "s", mid),
        {re.escape(f"{name}.{scale}"): ("s",) for scale in scales},
    )


TIMM = {"norm1": "norm1", "norm2": "norm2", "qkv": "attn.qkv.", "proj": "attn.proj", "up": "mlp.fc1", "down": "mlp.fc2"}
TORCH = {"norm1": "ln_1", "norm2": "ln_2", "qkv": "self_attention.in_proj_", "proj": "self_attention.out_proj",
         "up": "mlp.0", "down": "mlp.3"}  # fmt: skip


@network(
    "torchvision",
    table(
        {"class_token": (None, None, "s"), r"encoder\.pos_embedding": (None, None, "s")},
        conv("conv_proj", "s", None, True),
        *(vit_block(f"encoder.layers.encoder_layer_{i}", TORCH, str(i)) for i in range(2)),
        norm("encoder.ln", "s"),
        linear("heads.head", None, "s"),
    ),
    within=WITHIN,
)
def vit(package):
    """Class token, position embedding."""
    return package.models.VisionTransformer(16, 8, 2, 2, 8, 12, num_classes=5), (image(),)


def timm_vit(package, name: str, **options):
    small = {"img_size": 16, "patch_size": 8, "embed_dim": 8, "depth": 2, "num_heads": 2, "mlp_ratio": 1}
    return package.create_model(name, num_classes=5, **small | options), (image(),)


@network(
    "timm",
    table(
        {"cls_token": (None, None, "s"), "pos_embed": (None, None, "s")},
        conv("patch_embed.proj", "s", None, True),
        *(vit_block(f"blocks.{i}", TIMM, str(i), scales=("ls1.gamma", "ls2.gamma")) for i in range(2)),
        {r"blocks\.(\d)\.attn\.[qk]_norm\.(?:weight|bias)": ("qk{0}",)},
        norm("norm", "s"),
        linear("head", None, "s"),
    ),
    within={"vo(.*)": r"head\1"},
)
def vit_with_normalized_queries(package):
    """One scale for the dimensions of all heads, so that these are relabeled alike in each; layer scale."""
    return timm_vit(package, "vit_tiny_patch16_224", init_values=0.1, qk_norm=True)


@network(
    "timm",
    table(
        {"(?:cls|dist)_token": (None, None, "s"), "pos_embed": (None, None, "s")},
        conv("patch_embed.proj", "s", None, True),
        *(vit_block(f"blocks.{i}", TIMM, str(i)) for i in range(2)),
        norm("norm", "s"),
        linear("head", None, "s"),
        linear("head_dist", None, "s"),
    ),
    within=WITHIN,
    slow=True,
)
def deit_distilled(package):
    return timm_vit(package, "deit_tiny_distilled_patch16_224")


def cross_block(name: str, tag: str) -> dict:
    """Attention of the class token, with separate projections."""
    qk, vo = heads(2, 4, tag)
    return table(
        norm([f"{name}.norm1", f"{name}.norm2"], "s"),
        linear(f"{name}.attn.q", qk, "s"),
        linear(f"{name}.attn.k", qk, "s"),
        linear(f"{name}.attn.v", vo, "s"),
        linear(f"{name}.attn.proj", "s", vo),
        linear(f"{name}.mlp.fc1", f"m{tag}", "s"),
        linear(f"{name}.mlp.fc2", "s", f"m{tag}"),
        {re.escape(name) + r"\.gamma_?[12]": ("s",)},
    )


@network(
    "timm",
    table(
        {"cls_token": (None, None, "s"), "pos_embed": (None, None, "s"), r"blocks\.0\.gamma_[12]": ("s",)},
        conv("patch_embed.proj", "s", None, True),
        norm(["blocks.0.norm1", "blocks.0.norm2", "norm"], "s"),
        linear("blocks.0.attn.qkv", [("in:2", "qk:4"), ("in:2", "qk:4"), ("out:2", "vo:4")], "s"),
        linear("blocks.0.attn.proj", "s", ("out:2", "vo:4")),
        linear("blocks.0.attn.proj_l", "between", "in"),
        linear("blocks.0.attn.proj_w", "out", "between"),
        linear("blocks.0.mlp.fc1", "m", "s"),
        linear("blocks.0.mlp.fc2", "s", "m"),
        *(cross_block(f"blocks_token_only.{i}", str(i)) for i in range(2)),
        linear("head", None, "s"),
    ),
    within={"qk": "in", "vo": "out", r"(?:qk|vo)(\d)": r"head\1"},
)
def cait(package):
    """Talking heads: those of the queries, those between, and those of the values."""
    return timm_vit(package, "cait_xxs24_224", depth=1)


@network(
    "timm",
    table(
        {"cls_token": (None, None, "s"), "pos_embed": (None, None, "s")},
        conv("patch_embed.proj", "s", None, True),
        *(table(
            norm([f"blocks.{i}.norm1", f"blocks.{i}.norm2"], "s"),
            linear(f"blocks.{i}.attn.qkv", [(f"head{i}:2", 4)] * 2 + [(f"head{i}:2", f"vo{i}:4")], "s", False),
            {rf"blocks\.{i}\.attn\.q_bias": ((f"head{i}:2", 4),),
             rf"blocks\.{i}\.attn\.v_bias": ((f"head{i}:2", f"vo{i}:4"),)},
            linear(f"blocks.{i}.attn.proj", "s", (f"head{i}:2", f"vo{i}:4")),
            linear(f"blocks.{i}.mlp.fc1", [f"m{i}:8", f"m{i}:8"], "s"),
            linear(f"blocks.{i}.mlp.fc2", "s", f"m{i}"),
        ) for i in range(2)),
        norm("fc_norm", "s"),
        linear("head", None, "s"),
    ),
    within=WITHIN,
)  # fmt: skip
def eva(package):
    """Rotary embedding in two dimensions, gated MLP."""
    return timm_vit(package, "eva02_tiny_patch14_224")


@network(
    "timm",
    table(
        {"cls_token": (None, None, "s")},
        *(t for i, (out, into) in {0: (None, None), 2: ("b", None), 4: ("c", "b"), 6: ("s", "c")}.items() for t in (
            conv(f"patch_embed.proj.{i}.0", out, into), norm(f"patch_embed.proj.{i}.1", out))),
        conv("pos_embed.token_projection", "s", None, True),
        norm(["blocks.0.norm1", "blocks.0.norm2", "blocks.0.norm3", "blocks.0.local_mp.bn", "norm"], "s"),
        {r"blocks\.0\.gamma[123]": ("s",), r"blocks\.0\.attn\.temperature": ("head", None, None)},
        linear("blocks.0.attn.qkv", [("head:2", "q:4"), ("head:2", "kv:4"), ("head:2", "kv:4")], "s"),
        linear("blocks.0.attn.proj", "s", ("head:2", "q:4")),
        conv("blocks.0.local_mp.conv1", "s", None, True),
        conv("blocks.0.local_mp.conv2", "s", None, True),
        linear("blocks.0.mlp.fc1", "m", "s"),
        linear("blocks.0.mlp.fc2", "s", "m"),
        *(cross_block(f"cls_attn_blocks.{i}", str(i)) for i in range(2)),
        linear("head", None, "s"),
    ),
    within={"q|kv": "head", r"(?:qk|vo)(\d)": r"head\1"},
)  # fmt: skip
def xcit(package):
    """Attention between dimensions: the output has those of the queries, and keys' and values' are one."""
    return timm_vit(package, "xcit_nano_12_p16_224", img_size=32, patch_size=16, depth=1)[0], (image(32),)


@network(
    "timm",
    table(
        conv("stem.proj", "s", None, True),
        *(table(
            norm([f"blocks.{i}.norm1", f"blocks.{i}.norm2"], "s"),
            linear(f"blocks.{i}.mlp_tokens.fc1", f"t{i}", None), linear(f"blocks.{i}.mlp_tokens.fc2", None, f"t{i}"),
            linear(f"blocks.{i}.mlp_channels.fc1", f"c{i}", "s"), linear(f"blocks.{i}.mlp_channels.fc2", "s", f"c{i}"),
        ) for i in range(2)),
        norm("norm", "s"),
        linear("head", None, "s"),
    ),
)  # fmt: skip
def mixer(package):
    """Perceptrons over tokens and over channels."""
    make = package.models.mlp_mixer.MlpMixer
    return make(5, 16, patch_size=8, num_blocks=2, embed_dim=8, mlp_ratio=(0.5, 1.0)), (image(),)


@network(
    "timm",
    table(
        conv("stem.proj", "s", None, True),
        *(table(
            norm(f"blocks.{i}.norm", "s"), linear(f"blocks.{i}.mlp_channels.fc1", [f"g{i}:8", f"g{i}:8"], "s"),
            norm(f"blocks.{i}.mlp_channels.gate.norm", f"g{i}"), linear(f"blocks.{i}.mlp_channels.fc2", "s", f"g{i}"),
        ) for i in range(2)),
        norm("norm", "s"),
        linear("head", None, "s"),
    ),
)  # fmt: skip
def gmlp(package):
    """A gate that mixes tokens."""
    make = package.models.mlp_mixer
    gated = {"block_layer": make.SpatialGatingBlock, "mlp_layer": package.layers.GatedMlp}
    net = make.MlpMixer(5, 16, patch_size=8, num_blocks=2, embed_dim=8, mlp_ratio=2, **gated)
    return net, (image(),)


@network(
    "timm",
    table(
        conv("stem.0", "s0", None, True),
        norm("stem.2", "s0"),
        *(table(
            conv(f"blocks.{i}.0.fn.0", f"s{i}", None, True), norm(f"blocks.{i}.0.fn.2", f"s{i}"),
            conv(f"blocks.{i}.1", f"s{i + 1}", f"s{i}", True), norm(f"blocks.{i}.3", f"s{i + 1}"),
        ) for i in range(2)),
        linear("head", None, "s2"),
    ),
)  # fmt: skip
def convmixer(package):
    return package.models.convmixer.ConvMixer(8, 2, kernel_size=3, patch_size=4, num_classes=5), (image(),)


def swin_block(name: str, stream: str, n: int, tag: str) -> dict:
    qk, vo = heads(n, 4, tag)
    return table(
        norm([f"{name}.norm1", f"{name}.norm2"], stream),
        {re.escape(name) + r"\.attn\.relative_position_bias_table": (None, f"head{tag}")},
        linear(f"{name}.attn.qkv", [qk, qk, vo], stream),
        linear(f"{name}.attn.proj", stream, vo),
        linear(f"{name}.mlp.0", f"m{tag}", stream),
        linear(f"{name}.mlp.3", stream, f"m{tag}"),
    )


@network(
    "torchvision",
    table(
        conv("features.0.0", "a", None, True),
        norm("features.0.2", "a"),
        swin_block("features.1.0", "a", 2, "10"),
        swin_block("features.1.1", "a", 2, "11"),
        norm("features.2.norm", ["a:8"] * 4),
        linear("features.2.reduction", "b", ["a:8"] * 4, False),
        swin_block("features.3.0", "b", 4, "30"),
        swin_block("features.3.1", "b", 4, "31"),
        norm("norm", "b"),
        linear("head", None, "b"),
    ),
    within=WITHIN,
)
def swin(package):
    """Shifted windows, a bias for each head and offset, merged patches."""
    make = package.models.SwinTransformer
    return make([2, 2], 8, [2, 2], [2, 4], [4, 4], mlp_ratio=1.0, num_classes=5), (image(32),)


def clip_tower(tower: str, stream: str, layers: int) -> dict:
    parts = []
    for i in range(layers):
        name, (qk, vo) = f"model.{tower}.encoder.layers.{i}", heads(2, 4, f"{stream}{i}")
        parts += [
            norm([f"{name}.layer_norm1", f"{name}.layer_norm2"], stream),
            linear(f"{name}.self_attn.q_proj", qk, stream), linear(f"{name}.self_attn.k_proj", qk, stream),
            linear(f"{name}.self_attn.v_proj", vo, stream), linear(f"{name}.self_attn.out_proj", stream, vo),
            linear(f"{name}.mlp.fc1", f"m{stream}{i}", stream), linear(f"{name}.mlp.fc2", stream, f"m{stream}{i}"),
        ]  # fmt: skip
    return table(*parts)


@network(
    "transformers",
    table(
        {r"model\.text_model\.embeddings\.\w+\.weight": (None, "t")},
        clip_tower("text_model", "t", 1),
        norm("model.text_model.final_layer_norm", "t"),
        {r"model\.vision_model\.embeddings\.class_embedding": ("v",)},
        {r"model\.vision_model\.embeddings\.position_embedding\.weight": (None, "v")},
        conv("model.vision_model.embeddings.patch_embedding", "v", None),
        norm(["model.vision_model.pre_layrnorm", "model.vision_model.post_layernorm"], "v"),
        clip_tower("vision_model", "v", 1),
        linear("model.text_projection", "p", "t", False),
        linear("model.visual_projection", "p", "v", False),
    ),
    within=WITHIN,
)
def clip(package):
    """Two towers meet in an inner product, so that its dimensions are free too."""
    small = {"hidden_size": 8, "intermediate_size": 6, "num_hidden_layers": 1, "num_attention_heads": 2}
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    text = {**small, **special, "vocab_size": 7, "max_position_embeddings": 5}
    picture = {**small, "image_size": 16, "patch_size": 8}
    words = torch.tensor([[3, 4, 5, 6, 2], [6, 5, 4, 3, 2]])
    config = package.CLIPConfig(text_config=text, vision_config=picture, projection_dim=6)
    return First(package.CLIPModel(config)), (words, image())


def segformer_stage(i: int, out: str, into, n: int | None, d: int, reduce: bool) -> dict:
    name = f"model.segformer.stages.{i}"
    block, mid = f"{name}.blocks.0", f"m{i}"
    qk, vo = heads(n, d, str(i)) if n else (f"qk{i}", f"vo{i}")
    source, reduction = (f"r{i}" if reduce else out), f"{block}.attention.sequence_reduction"
    return table(
        conv(f"{name}.patch_embeddings.proj", out, into, True),
        norm([f"{name}.patch_embeddings.layer_norm", f"{block}.layernorm_before", f"{block}.layernorm_after",
              f"{name}.layer_norm"], out),
        linear(f"{block}.attention.q_proj", qk, out), linear(f"{block}.attention.k_proj", qk, source),
        linear(f"{block}.attention.v_proj", vo, source), linear(f"{block}.attention.o_proj", out, vo),
        *((conv(f"{reduction}.sequence_reduction", source, out, True), norm(f"{reduction}.layer_norm", source))
          if reduce else ()),
        linear(f"{block}.mlp.fc1", mid, out), conv(f"{block}.mlp.dwconv.dwconv", mid, None, True),
        linear(f"{block}.mlp.fc2", out, mid),
    )  # fmt: skip


@network(
    "transformers",
    table(
        segformer_stage(0, "a", None, None, 8, True),
        segformer_stage(1, "b", "a", 2, 6, False),
        linear("model.decode_head.linear_projections.0.proj", "p", "a"),
        linear("model.decode_head.linear_projections.1.proj", "q", "b"),
        conv("model.decode_head.linear_fuse", "f", ["q:10", "p:10"]),
        norm("model.decode_head.batch_norm", "f"),
        conv("model.decode_head.classifier", None, "f", True),
    ),
    within={"(?:qk|vo)(1)": r"head\1"},
)
def segformer(package):
    """Reduced keys, depthwise convolution in the MLP, maps of all stages resampled and side by side."""
    config = package.SegformerConfig(
        depths=[1, 1], hidden_sizes=[8, 12], num_encoder_blocks=2, sr_ratios=[2, 1], patch_sizes=[7, 3],
        strides=[4, 2], num_attention_heads=[1, 2], mlp_ratios=[1, 1], decoder_hidden_size=10,
    )  # fmt: skip
    return First(package.SegformerForSemanticSegmentation(config)), (image(32),)

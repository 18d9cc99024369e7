"""One thin command a verb; flags are derived from signatures and from the recipe. No logic."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import Positional, arg

from nearfar.errors import UserError, nearest, one_line
from nearfar.foreign.spec import Choices, is_foreign
from nearfar.transfer.settings import Settings

_Foreign = Annotated[Choices, arg(name="")]  # flags without a prefix
_Settings = Annotated[Settings, arg(name="")]
_KINDS = {"float": float, "int": int, "str": str, "bool": bool}


def train(argv: list[str]) -> None:
    """train an encoder on a source of images, judge it, and write a run's folder with report.html"""
    from nearfar import recipe as recipes
    from nearfar.run import train as do

    start = _start(argv)
    given = tyro.cli(_train_flags(start), args=argv, prog="nearfar train", description=_first(train.__doc__))
    values = {f.name: getattr(given, f.name) for f in dataclasses.fields(given)}
    out, force, _, _ = (values.pop(name) for name in ("out", "force", "recipe", "preset"))
    config = start.method_config()
    flags = {f.name: values.pop(f.name) for f in dataclasses.fields(config)}
    # only what was changed, so that what suits the images may still be chosen
    settings = start.settings | {k: v for k, v in flags.items() if v != getattr(config, k) or f"--{k}" in argv}
    views = {k: v for k, v in dataclasses.asdict(values.pop("views")).items() if v is not None}
    source = values.pop("source") or start.source
    budget = {k: values[k] for k in ("epochs", "steps", "minutes")}
    if budget != {k: getattr(start, k) for k in budget}:
        values["pace"] = ()
        changed = {k: v for k, v in budget.items() if v != getattr(start, k)}
        values |= dict.fromkeys(budget, 0) | changed
    else:
        values["pace"] = start.pace
    changed = [held | views for held in start.views] if isinstance(start.views, tuple) else start.views | views
    recipe = recipes.Recipe(source=source, settings=settings, views=changed, **values)
    run = do(recipe=recipe, out=out or None, force=force, say=_say)
    _show_results(run)
    print(f"run     {run.folder}\nreport  {run.folder / 'report.html'}")


def _start(argv: list[str]) -> Any:
    """The recipe whose values are the flags' defaults: the one named by --recipe, or the method's preset."""
    from nearfar import recipe as recipes

    method, preset = _flag(argv, "--method") or "", _flag(argv, "--preset") or ""
    path = _flag(argv, "--recipe")
    return recipes.turned(recipes.read(path), method, preset) if path else recipes.of(method or "simclr", preset)


def _flag(argv: list[str], name: str) -> str | None:
    for i, word in enumerate(argv):
        if word == name and i + 1 < len(argv):
            return argv[i + 1]
        if word.startswith(name + "="):
            return word.partition("=")[2]
    return None


def _help(cls: type, name: str) -> str:
    from tyro._docstrings import get_field_docstring

    return (get_field_docstring(cls, name, ()) or "").replace("\n", " ")


def _train_flags(start: Any) -> type:
    """A dataclass with a field for every key of the recipe, of the method's settings and of the policy."""
    from nearfar.recipe import Recipe

    def fields(cls: type, defaults: Any, skip: tuple[str, ...] = ()) -> list[tuple]:
        return [(f.name, Annotated[_KINDS[str(f.type)], arg(help=_help(cls, f.name))],
                 dataclasses.field(default=getattr(defaults, f.name)))
                for f in dataclasses.fields(cls) if f.name not in skip]  # fmt: skip

    views = _views_flags()
    config = start.method_config()
    skip = ("source", "views", "settings", "optim", "pace")
    return dataclasses.make_dataclass("Train", [
        ("source", Positional[Annotated[str, arg(help=_help(Recipe, "source"))]], ""),
        *fields(Recipe, start, skip),
        *fields(type(config), config),
        ("optim", type(start.optim), start.optim),
        ("views", views, dataclasses.field(default_factory=views)),
        ("out", Annotated[str, arg(help="the run's folder; runs/SOURCE-METHOD where left out")], ""),
        ("recipe", Annotated[str, arg(help="start from a recipe.toml or a run's folder")], ""),
        ("preset", Annotated[str, arg(help="which of the method's own recipes: small (for small machines), paper …")],
         "small"),
        ("force", Annotated[bool, tyro.conf.FlagCreatePairsOff, arg(help="replace a run of the same name")], False),
    ])  # fmt: skip


def _views_flags() -> type:
    """A dataclass with a field for every value of a policy, None where it is not changed."""
    from nearfar.views.policy import ImagePolicy

    return dataclasses.make_dataclass("views", [
        (f.name, Annotated[_KINDS[str(f.type)] | None, arg(help=_help(ImagePolicy, f.name))], None)
        for f in dataclasses.fields(ImagePolicy)
    ])  # fmt: skip


def views(argv: list[str]) -> None:
    """draw a sheet of images and their augmented views, with what was done to each

    The policies: {policies}.
    """
    from nearfar import sheet
    from nearfar.build import open_like
    from nearfar.recipe import Recipe, to_toml
    from nearfar.views.policies import POLICIES
    from nearfar.views.policy import as_views

    flags = _views_flags()
    given = tyro.cli(dataclasses.make_dataclass("Views", [
        ("source", Positional[Annotated[str, arg(help=_help(Recipe, "source"))]]),
        ("policy", Annotated[str, arg(help="auto: the one that suits the images, or a name from above")], "auto"),
        ("out", Annotated[str, arg(aliases=["-o"], help="the picture's file: .png, .jpg or .webp")], "views.png"),
        ("rows", Annotated[int, arg(help="how many images")], 8),
        ("large", Annotated[int, arg(help="how many large views of each; small crops come beside them")], 4),
        ("seed", Annotated[int, arg(help="decides what is drawn")], 0),
        ("image_size", Annotated[int, arg(help=_help(Recipe, "image_size"))], 0),
        ("views", flags, dataclasses.field(default_factory=flags)),
    ]), args=argv, prog="nearfar views",
        description=views.__doc__.format(policies=", ".join(POLICIES)))  # fmt: skip
    if given.rows < 1 or given.large < 1:
        raise UserError(f"--rows {given.rows}, --large {given.large}: give 1 or more")
    changes = {k: v for k, v in dataclasses.asdict(given.views).items() if v is not None}
    source = open_like(given.source, None, Recipe(image_size=given.image_size)).train
    name, plan = sheet.plan_for(source, given.policy, changes)
    picture = sheet.views_sheet(source, plan, rows=given.rows, large=given.large, seed=given.seed)
    sheet.write(picture, Path(given.out))
    table = to_toml(Recipe(policy=name, views=as_views(plan))).partition("\n\n[")[2].partition("\n\n[optim]")[0]
    print(f'policy = "{name}"\n\n[{table}\n')
    print(given.out)


def _show_results(run: Any) -> None:
    import json

    from nearfar.report.load import table_of

    held = json.loads((run.folder / "results.json").read_text())
    if held.get("evaluation"):
        table_of(held["evaluation"])


def embed(run: Positional[str], source: Positional[str], *, out: Annotated[str, arg(aliases=["-o"])],
          project: bool = False, force: bool = False, choices: _Foreign = Choices()) -> None:  # noqa: B008 # fmt: skip
    """write the features of a source's images to .npz or .parquet

    Args:
        run: a run's folder, or a model of another origin, as for evaluate.
        source: images, as for train.
        out: out.npz or out.parquet: features, labels, names, split.
        project: after the projector instead of before it.
        force: replace the file.
    """
    from nearfar.embedding import write_embedding
    from nearfar.run import load

    if is_foreign(run):
        from nearfar.foreign.judge import load as load_foreign

        opened = load_foreign(run, choices)
    else:
        _only_foreign(run, choices)
        opened = load(run)
    n, d = write_embedding(opened, source, Path(out), project=project, force=force)
    print(f"{out}: {n:,} embeddings of {d} dimensions")


def evaluate(run: Positional[str], source: Positional[str] = "", *, draws: int = 10,
             labels: tuple[str, ...] = ("1", "5", "10"), more: bool = False, robust: bool = False,
             out: str = "", like: str = "", choices: _Foreign = Choices()) -> None:  # noqa: B008 # fmt: skip
    """judge a run on a source: kNN, linear probe, few labels, beside raw pixels and the untrained encoder

    Args:
        run: a run's folder; or an .npz with an embedding of any origin: features, labels and split ("train", "test"),
            as embed writes it, or x_train, y_train, x_test and y_test, labels (N, K) of zeros and ones being several
            an item; or a model of another origin: torchvision:NAME, timm:NAME, transformers:NAME or :FOLDER, each with
            @random for fresh weights, timm: and torchvision:NAME@FILE.safetensors, or FILE.onnx.
        source: labelled images; the run's own source where left out.
        draws: draws of the few labels.
        labels: how many labels a class, or which share of the training labels: 1 5 10 1% 10%.
        more: also how test items retrieve and cluster among themselves: recall@1, MAP@R, MRR; NMI, AMI, ARI, purity.
        robust: also how the probes stand up to corrupted test images (noise, blur, weather, JPEG), and how far each
            augmentation of the run's policy moves the features.
        out: of a foreign model: the folder of its results; judged/NAME-on-SOURCE where left out.
        like: of a foreign model: a run by which the source is opened and split, so that compare takes both.
    """
    from nearfar.evaluate.probes import amount
    from nearfar.run import load

    few = tuple(amount(n) for n in labels)  # before anything long
    if robust and (is_foreign(run) or run.endswith(".npz")):
        raise UserError(f"--robust takes a run's folder, by whose policy it changes the run's images: {run} is none")
    if is_foreign(run):
        from nearfar.foreign.judge import evaluate_model, folder_for

        base = load(like) if like else None
        folder = Path(out) if out else folder_for(run, source or (base.recipe.source if base else ""))
        result = evaluate_model(run, source or None, choices=choices, like=base, out=folder, draws=draws,
                                labels_per_class=few, more=more, say=_say)  # fmt: skip
        result.render()
        for what, said in result.protocol["model"].items():
            print(f"{what}: {said}")
        print(f"results {folder / 'results.json'}")
        return
    _only_foreign(run, choices, out, like)
    if run.endswith(".npz"):
        from nearfar.compare import files_of, judge_file

        if source:
            raise UserError(f"{run} holds its own rows: leave {source} out")
        judged = judge_file(Path(run), draws=draws, labels=few, more=more)
        judged.render()
        for note in judged.notes:
            _say(note)
        print(f"results {files_of(Path(run))[0]}")
        return
    opened = load(run)
    result = opened.evaluate(source or None, draws=draws, labels_per_class=few, more=more, robust=robust, say=_say)
    if result is not None:
        result.render()
        best = result.judgements["nearfar"]["linear"].metrics
        for kind in ("macro", "micro"):
            m = best[kind]
            print(f"linear, {kind}: precision {m['precision']:.3f}  recall {m['recall']:.3f}  F1 {m['f1']:.3f}")
        c = best["calibration"]
        print(f"linear, probabilities: top-5 {c['top5']:.3f}  log loss {c['log_loss']:.3f}  Brier {c['brier']:.3f}  "
              f"calibration error {c['ece']:.3f}")  # fmt: skip
    if robust:
        from nearfar.report.robustness import print_table

        print_table(opened.folder)
    print(f"results {opened.folder / 'results.json'}\nreport  {opened.folder / 'report.html'}")


def _only_foreign(run: str, choices: Choices, *more: str) -> None:
    if choices != Choices() or any(more):
        raise UserError(f"{run} is no foreign model: leave --out, --like, --mean, --std, --input-size and --image-size "
                        "out")  # fmt: skip


def transfer(
    run: Positional[str], source: Positional[str] = "", *, task: str = "", labels: tuple[str, ...] = ("10",),
    seeds: int = 3, modes: tuple[str, ...] = ("frozen", "fine-tuned"), out: str = "", max_bad: float = 0.05,
    settings: _Settings = Settings(),  # noqa: B008
) -> None:
    """put heads on a run's encoder and train them at few labels, beside the same encoder with random weights

    Args:
        run: a run's folder; several with commas between are several seeds of pre-training.
        source: a folder with boxes (VOC, COCO) or masks (images/ beside masks/), or labelled images; the run's own
            source where left out.
        task: classification, detection or segmentation; by the source's layout where left out.
        labels: how many labelled pictures (classification: a class), or which share: 1 10 10% all.
        seeds: draws of the labelled pictures, with random weights and order.
        modes: frozen, fine-tuned.
        max_bad: largest share of annotated pictures that may be missing or broken.
        out: the results' folder; RUN/transfer/TASK-HEAD where left out.
    """
    from nearfar.downstream import transfer as do
    from nearfar.run import load
    from nearfar.transfer.tables import render

    runs = [load(name) for name in run.split(",")]
    found = do(runs, source or runs[0].recipe.source, task=task, labels=labels, seeds=seeds, modes=modes,
               settings=settings, out=out or None, max_bad=max_bad, say=_say)  # fmt: skip
    render(found)
    print(f"results {found['folder']}/results.json\nreport  {runs[0].folder / 'report.html'}")


def compare(runs: Positional[tuple[str, ...]]) -> None:
    """say which differences in accuracy between runs are real: paired over the same test items, draws and seeds

    Args:
        runs: folders of runs, or embeddings' .npz files, judged on the same items; the first is the base. Seeds of one
            kind are joined by commas, A1,A2,A3 B1,B2,B3, or a pattern in quotes, 'runs/a-*'.
    """
    from rich.console import Console
    from rich.table import Table

    from nearfar.compare import compare as do

    found = do(runs)
    table = Table(title=f"{found[0].of} less that of {found[0].base}")
    several = max(max(d.seeds) for d in found) > 1
    heads = ["run", "judge", "difference", "95 % interval", "real"] + ["seeds, spread", "of the base"] * several
    for head in heads:
        table.add_column(head, justify="left" if head in ("run", "judge", "real") else "right")
    for d in found:
        seeds = [f"{n}" if s is None else f"{n}, {s:.3f}" for n, s in zip(d.seeds, d.spread)] if several else []
        table.add_row(d.name, d.judge, f"{d.value:+.3f}", f"{d.low:+.3f} to {d.high:+.3f}", "yes" if d.real else "no",
                      *seeds)  # fmt: skip
    Console(width=None).print(table)


def report(run: Positional[str]) -> None:
    """write report.html anew from what lies in a run's folder

    Args:
        run: a run's folder.
    """
    from nearfar.report import write

    print(f"report  {write(Path(run))}")


def neighbours(run: Positional[str], source: Positional[str], query: Positional[str], *, k: int = 8,
               out: Annotated[str, arg(aliases=["-o"])] = "") -> None:  # fmt: skip
    """list the images of a source nearest to one of them, or to an image file

    Args:
        run: a run's folder.
        source: images, as for train; of a source with splits, the training part.
        query: an index into the source, or an image file.
        k: how many.
        out: also write a picture of them, .png.
    """
    from nearfar.run import load

    opened = load(run)
    part = opened.open(source).train
    rows = opened.neighbours(source, query, k)
    for index, cosine in rows:
        label = "" if part.labels is None else f"  {part.classes[part.labels[index]]}"
        print(f"{cosine:.3f}  {part.names[index]}{label}")
    if out:
        from nearfar.embedding import write_strip

        write_strip(opened, part, [i for i, _ in rows], query, Path(out))
        print(out)


def methods(method: Positional[str] = "") -> None:
    """list the methods, or print one's recipes

    Args:
        method: a method's name; its presets are printed, each as a recipe.
    """
    from nearfar import methods as known
    from nearfar import recipe as recipes

    for name in [] if method else known.names():
        print(f"{name:18} {_first(known.module(name).__doc__)}")
    for preset in known.module(method).PRESETS if method else ():
        print(f"# nearfar train SOURCE --method {method} --preset {preset}")
        print(recipes.to_toml(recipes.filled(method, preset)))


def doctor() -> None:
    """say what is installed, what the machine has, and what each missing extra would give"""
    from nearfar.environment import describe_environment, extras

    about = describe_environment()
    for key in ("nearfar", "commit", "python", "platform", "device", "threads"):
        print(f"{key:16} {about[key]}")
    for name, version in about["packages"].items():
        print(f"{name:16} {version or 'missing'}")
    for extra, module, state, gives in extras():
        fix = "" if state[0].isdigit() or state == "present" else f"   pip install 'nearfar[{extra}]'"
        print(f"{module:16} {state:14} {gives}{fix}")


_VERBS = {f.__name__: f for f in (train, views, embed, evaluate, transfer, compare, report, neighbours, methods,
                                  doctor)}  # fmt: skip


def _first(text: str | None) -> str:
    return (text or "").strip().splitlines()[0]


def _say(text: str) -> None:
    print(f"nearfar: {text}", file=sys.stderr)


def _usage() -> str:
    lines = ["nearfar: pull what belongs together near, push the rest far", "", "usage: nearfar VERB …", ""]
    lines += [f"  {name:11} {_first(f.__doc__)}" for name, f in _VERBS.items()]
    return "\n".join([*lines, "", "`nearfar VERB --help` says more. Start with: nearfar train digits --minutes 0.5"])


def main(argv: list[str] | None = None) -> int:
    """Run a command; a user's mistake is one line on stderr and exit code 2."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0
    if argv[0] in ("--version", "-V"):
        from nearfar import __version__

        print(__version__)
        return 0
    try:
        if argv[0] not in _VERBS:
            raise UserError(f"unknown verb {argv[0]!r}{nearest(argv[0], _VERBS)}")
        verb = _VERBS[argv[0]]
        if verb in (train, views):
            verb(argv[1:])
        else:
            tyro.cli(verb, args=argv[1:], prog=f"nearfar {argv[0]}", config=(tyro.conf.FlagCreatePairsOff,))
    except UserError as error:
        _say(str(error))
        return 2
    except KeyboardInterrupt:
        _say("stopped; what was written stays")
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if os.environ.get("NEARFAR_DEBUG"):
            raise
        _say(one_line(error))
        return 2
    return 0

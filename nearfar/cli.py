"""One thin command a verb; flags are derived from signatures and from the recipe. No logic."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import Positional, arg

from nearfar.errors import Elsewhere, Preempted, UserError, nearest, one_line
from nearfar.training.engine import Engine
from nearfar.training.signals import EXIT_CODE
from nearfar.verbs import compare, embed, evaluate, export, mine, neighbours, predictors, say, transfer

_KINDS = {"float": float, "int": int, "str": str, "bool": bool}


def train(argv: list[str]) -> None:
    """train an encoder on a source of images or texts, judge it, and write a run's folder with report.html"""
    from nearfar import recipe as recipes
    from nearfar.pretrain import train as do

    if _flag(argv, "--resume") is not None:
        return _resume(argv)
    start = _start(argv)
    given = tyro.cli(_train_flags(start), args=argv, prog="nearfar train", description=_first(train.__doc__))
    values = {f.name: getattr(given, f.name) for f in dataclasses.fields(given)}
    out, force, _, _, _ = (values.pop(name) for name in ("out", "force", "recipe", "preset", "resume"))
    engine = {f.name: values.pop(f.name) for f in dataclasses.fields(Engine)}
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
    _show_results(do(recipe=recipe, out=out or None, force=force, say=say, **engine))


def _resume(argv: list[str]) -> None:
    """go on with a run, to the bit, from its last good checkpoint, by its own recipe"""
    from nearfar.pretrain import train as do

    text = "a run's folder; where it is trained to its end, it is judged if it has not been"
    given = tyro.cli(dataclasses.make_dataclass("Resume", [
        ("resume", Annotated[str, arg(help=text)]),
        ("source", Positional[Annotated[str, arg(help="where the data lie now, if elsewhere")]], ""),
        *((f.name, Annotated[_KINDS[str(f.type)] | None, arg(help=_help(Engine, f.name))], None)
          for f in dataclasses.fields(Engine)),
    ]), args=argv, prog="nearfar train", description=_first(_resume.__doc__))  # fmt: skip
    engine = {f.name: v for f in dataclasses.fields(Engine) if (v := getattr(given, f.name)) is not None}
    _show_results(do(given.source or None, resume=given.resume, say=say, **engine))


def _start(argv: list[str]) -> Any:
    """The recipe whose values are the flags' defaults: the one named by --recipe, or the method's preset."""
    from nearfar import recipe as recipes

    method, preset = _flag(argv, "--method") or "", _flag(argv, "--preset") or ""
    path = _flag(argv, "--recipe")
    if path:
        return recipes.turned(recipes.read(path), method, preset)
    return recipes.of(method or ("simcse" if _names_text(argv) else "simclr"), preset)


def _names_text(argv: list[str]) -> bool:
    """Whether the source, which is written first or last, is one of texts."""
    from nearfar.text import looks_like_text

    return any(not word.startswith("-") and looks_like_text(word) for word in (*argv[:1], *argv[-1:]))


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
    skip = ("source", "views", "settings", "optim", "text", "pace")
    return dataclasses.make_dataclass("Train", [
        ("source", Positional[Annotated[str, arg(help=_help(Recipe, "source"))]], ""),
        *fields(Recipe, start, skip),
        *fields(type(config), config),
        ("optim", type(start.optim), start.optim),
        ("text", type(start.text), start.text),
        ("views", views, dataclasses.field(default_factory=views)),
        ("out", Annotated[str, arg(help="the run's folder; runs/SOURCE-METHOD where left out")], ""),
        ("recipe", Annotated[str, arg(help="start from a recipe.toml or a run's folder")], ""),
        ("preset", Annotated[str, arg(help="which of the method's own recipes: small (for small machines), paper …")],
         "small"),
        ("force", Annotated[bool, tyro.conf.FlagCreatePairsOff, arg(help="replace a run of the same name")], False),
        ("resume", Annotated[str, arg(help="go on with a run's folder; then only the engine's flags are taken")], ""),
        *fields(Engine, Engine()),
    ])  # fmt: skip


def _views_flags() -> type:
    """A dataclass with a field for every value of a policy, None where it is not changed."""
    from nearfar.views.policy import ImagePolicy

    return dataclasses.make_dataclass("views", [
        (f.name, Annotated[_KINDS[str(f.type)] | None, arg(help=_help(ImagePolicy, f.name))], None)
        for f in dataclasses.fields(ImagePolicy)
    ])  # fmt: skip


def views(argv: list[str]) -> None:
    """draw a sheet of images and their augmented views, with what was done to each; of texts, print them

    The policies: {policies}.
    """
    from nearfar import sheet
    from nearfar.build import open_like
    from nearfar.recipe import Recipe, to_toml
    from nearfar.text import TextOptions, looks_like_text
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
        ("text", TextOptions, TextOptions()),
    ]), args=argv, prog="nearfar views",
        description=views.__doc__.format(policies=", ".join(POLICIES)))  # fmt: skip
    if given.rows < 1 or given.large < 1:
        raise UserError(f"--rows {given.rows}, --large {given.large}: give 1 or more")
    if looks_like_text(given.source):
        return _views_of_text(given)
    changes = {k: v for k, v in dataclasses.asdict(given.views).items() if v is not None}
    source = open_like(given.source, None, Recipe(image_size=given.image_size)).train
    name, plan = sheet.plan_for(source, given.policy, changes)
    picture = sheet.views_sheet(source, plan, rows=given.rows, large=given.large, seed=given.seed)
    sheet.write(picture, Path(given.out))
    table = to_toml(Recipe(policy=name, views=as_views(plan))).partition("\n\n[")[2].partition("\n\n[optim]")[0]
    print(f'policy = "{name}"\n\n[{table}\n')
    print(given.out)


def _views_of_text(given: Any) -> None:
    """Texts and what the noise asked for makes of them, a line each."""
    from nearfar.recipe import Recipe
    from nearfar.wordspaces import seen

    recipe = Recipe(source=given.source, encoder="bag", text=given.text, holdout=0.0)
    for original, views in seen(recipe, rows=given.rows, large=given.large, seed=given.seed):
        print(original)
        for view in views:
            print(f"  {view}")


def _show_results(run: Any) -> None:
    import json

    if run.rank:
        return

    from nearfar.report.load import table_of

    held = json.loads((run.folder / "results.json").read_text())
    if held.get("evaluation"):
        table_of(held["evaluation"])
    print(f"run     {run.folder}\nreport  {run.folder / 'report.html'}")


def report(run: Positional[str]) -> None:
    """write report.html anew from what lies in a run's folder

    Args:
        run: a run's folder.
    """
    from nearfar.report import write

    print(f"report  {write(Path(run))}")


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


_VERBS = {f.__name__: f for f in (train, views, embed, evaluate, export, transfer, compare, predictors, report,
                                  neighbours, mine, methods, doctor)}  # fmt: skip


def _first(text: str | None) -> str:
    return (text or "").strip().splitlines()[0]


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
    except Elsewhere:
        return 2
    except UserError as error:
        say(str(error))
        return 2
    except Preempted as error:
        say(str(error))
        return EXIT_CODE
    except KeyboardInterrupt:
        say("stopped; what was written stays")
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if os.environ.get("NEARFAR_DEBUG"):
            raise
        say(one_line(error))
        return 2
    return 0

"""The commands that judge and use what was trained. No logic."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from nearfar.errors import UserError
from nearfar.foreign.spec import Choices, is_foreign
from nearfar.transfer.settings import Settings

_Foreign = Annotated[Choices, arg(name="")]  # flags without a prefix
_Settings = Annotated[Settings, arg(name="")]


@dataclass(frozen=True)
class Reading:
    """How texts are found in a file, where the names of its columns do not say."""

    columns: str = ""
    """names of the columns of text, with commas between"""
    label: str = ""
    """the column of classes"""
    score: str = ""
    """the column of pairs' similarities"""
    score_range: str = ""
    """least and largest score: 0,5"""
    unit: str = ""
    """what a text is in plain files: line, sentence or document"""
    encoding: str = ""
    """of the file, where it is not UTF-8"""
    pooling: str = ""
    """of a foreign model: mean, cls, last or max, as it was trained"""
    prefix: str = ""
    """of a foreign model: written before each text"""

    def given(self) -> dict[str, str]:
        return {name: value for name, value in vars(self).items() if value}


def say(text: str) -> None:
    print(f"nearfar: {text}", file=sys.stderr)


def embed(run: Positional[str], source: Positional[str], *, out: Annotated[str, arg(aliases=["-o"])],
          project: bool = False, force: bool = False, text: Reading = Reading(),
          choices: _Foreign = Choices()) -> None:  # noqa: B008 # fmt: skip
    """write the features of a source's images or texts to .npz or .parquet

    Args:
        run: a run's folder, or a model of another origin, as for evaluate.
        source: images or texts, as for train.
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
    n, d = write_embedding(opened, source, Path(out), project=project, force=force, reading=text.given())
    print(f"{out}: {n:,} embeddings of {d} dimensions")


def export(run: Positional[str], *, out: Annotated[str, arg(aliases=["-o"])], force: bool = False) -> None:
    """write a run's encoder for use elsewhere: a sentence-transformers folder, ONNX, or its weights

    Args:
        run: a run's folder.
        out: NAME.onnx; NAME.safetensors, the weights alone; else, of texts, a folder that SentenceTransformer and
            AutoModel load. Of texts the tokeniser lies beside a file, as NAME.tokenizer.json.
        force: replace what was exported there before.
    """
    from nearfar.exports import export as do

    for path in do(run, out, force=force):
        print(path)


def evaluate(run: Positional[str], source: Positional[str] = "", *, draws: int = 10,
             labels: tuple[str, ...] = ("1", "5", "10"), more: bool = False, robust: bool = False,
             out: str = "", like: str = "", text: Reading = Reading(),
             choices: _Foreign = Choices()) -> None:  # noqa: B008 # fmt: skip
    """judge a run on a source: kNN, linear probe, few labels, beside raw pixels and the untrained encoder

    Texts: by labels, by scores of pairs (Spearman), or by how pairs find each other, beside TF-IDF and word vectors.

    Args:
        run: a run's folder; or an .npz with an embedding of any origin: features, labels and split ("train", "test"),
            as embed writes it, or x_train, y_train, x_test and y_test, labels (N, K) of zeros and ones being several
            an item; or a model of another origin: torchvision:NAME, timm:NAME, transformers:NAME or :FOLDER, each with
            @random for fresh weights, timm: and torchvision:NAME@FILE.safetensors, or FILE.onnx.
        source: labelled images; labelled texts, scored or bare pairs; the run's own source where left out.
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
    from nearfar.text import looks_like_text

    few = tuple(amount(n) for n in labels)  # before anything long
    if robust and (is_foreign(run) or run.endswith(".npz")):
        raise UserError(f"--robust takes a run's folder, by whose policy it changes the run's images: {run} is none")
    if is_foreign(run):
        from nearfar.foreign.judge import evaluate_model, folder_for

        if source and not like and looks_like_text(source):
            return _evaluate_text_model(run, source, out or folder_for(run, source), draws, few, more, text)
        base = load(like) if like else None
        folder = Path(out) if out else folder_for(run, source or (base.recipe.source if base else ""))
        result = evaluate_model(run, source or None, choices=choices, like=base, out=folder, draws=draws,
                                labels_per_class=few, more=more, say=say)  # fmt: skip
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
            say(note)
        print(f"results {files_of(Path(run))[0]}")
        return
    opened = load(run)
    result = opened.evaluate(source or None, draws=draws, labels_per_class=few, more=more, robust=robust, say=say,
                             reading=text.given())  # fmt: skip
    if result is not None:
        result.render()
    if result is not None and result.judgements:
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


def _evaluate_text_model(
    run: str, source: str, out: str | Path, draws: int, labels: tuple[int | str, ...], more: bool, text: Reading
) -> None:  # fmt: skip
    from nearfar.pretrained import evaluate_text_model

    evaluate_text_model(run, source, out=out, draws=draws, labels_per_class=labels, more=more, reading=text.given(),
                        say=say).render()  # fmt: skip
    print(f"results {Path(out) / 'results.json'}")


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
               settings=settings, out=out or None, max_bad=max_bad, say=say)  # fmt: skip
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
    Console(width=None, markup=False, emoji=False).print(table)


def predictors(runs: Positional[tuple[str, ...]], *,
               out: Annotated[tuple[str, ...], arg(aliases=["-o"])] = ()) -> None:  # fmt: skip
    """say which label-free measure predicts the probes: rank correlations over runs, with intervals over runs

    Args:
        runs: folders of five or more runs, judged on the same items.
        out: files to write: .json all numbers (Kendall's τ too), .svg or .png a picture.
    """
    from rich.console import Console
    from rich.table import Table

    from nearfar.predictors import MEASURES, SPACES, TARGETS, cell
    from nearfar.predictors import predictors as do

    found = do(runs, out=out)
    probes = [p for p in TARGETS if any(c.probe == p for c in found)]
    for space in SPACES.values():
        table = Table(title=f"Spearman's ρ of {space} with probes, over {len(runs)} runs")
        for head in ("measure", *probes):
            table.add_column(head)
        for measure, (title, claimed) in MEASURES.items():
            held = [cell(c.spearman) for c in found if (c.space, c.measure) == (space, measure)]
            if held:
                table.add_row(f"{claimed} {title}", *(text.replace(" (", "\n(", 1) for text in held))
        Console(width=None, markup=False, emoji=False).print(table)
    print("under each its 95 % interval over runs; + and −: more or less of it is held to be better")
    for name in out:
        print(name)


def mine(run: Positional[str], source: Positional[str], *, out: Annotated[str, arg(aliases=["-o"])], count: int = 1,
         skip: int = 0, margin: float = 0.05, force: bool = False,
         text: Reading = Reading()) -> None:  # fmt: skip
    """find hard negatives for pairs of texts, and write triplets to train on

    Args:
        run: a run's folder.
        source: pairs of texts; of a source with splits, the training part.
        out: out.jsonl: anchor, positive, negative.
        count: negatives an anchor.
        skip: how many of the hardest are left out.
        margin: a text whose cosine to the anchor is above 1 - margin of its positive's is no negative.
        force: replace the file.
    """
    from nearfar.run import load
    from nearfar.triplets import write_triplets

    n, short = write_triplets(load(run), source, Path(out), count=count, skip=skip, margin=margin, force=force,
                              reading=text.given())  # fmt: skip
    print(f"{out}: {n:,} triplets" + (f"; {short:,} anchors have fewer than {count} negatives" if short else ""))


def neighbours(run: Positional[str], source: Positional[str], query: Positional[str], *, k: int = 8,
               out: Annotated[str, arg(aliases=["-o"])] = "") -> None:  # fmt: skip
    """list the items of a source nearest to one of them, or to an image file or a text

    Args:
        run: a run's folder.
        source: images or texts, as for train; of a source with splits, the training part.
        query: an index into the source, an image file, or a text.
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
    if out and part.origin is not None:
        raise UserError(f"-o {out} is a picture of images: leave it out for texts")
    if out:
        from nearfar.embedding import write_strip

        write_strip(opened, part, [i for i, _ in rows], query, Path(out))
        print(out)

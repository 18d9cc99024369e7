"""Folders are decoded once into a cache that can be killed, filled, damaged and shared, and never changes a pixel."""

import contextlib
import gc
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings

import numpy as np
import pytest
from PIL import Image

import nearfar
from nearfar.data import Loader, cache, open_source
from nearfar.data.index import survey
from nearfar.data.workers import Failed, attempt, each

SETTLED = 0.15  # seconds after which a file's stamp is trusted


def write(path, seed, size=(32, 32), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    x = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(x).save(path, **options)


@pytest.fixture(autouse=True)
def own(tmp_path, monkeypatch):
    """Every test has a cache of its own."""
    monkeypatch.setenv("NEARFAR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def photos(tmp_path):
    for i in range(60):
        write(tmp_path / "photos" / "ab"[i % 2] / f"{i}.png", i)
    time.sleep(SETTLED)
    return tmp_path / "photos"


def opened(folder, **options):
    """-> the source, how many images were decoded for it, what was said"""
    counted, said = [], []
    source = open_source(folder, progress=lambda *at: counted.append(at), say=said.append, **options).train
    assert [done for done, _ in counted] == sorted(done for done, _ in counted)
    assert all(total == counted[-1][0] for _, total in counted)  # it ends at its end
    return source, counted[-1][1] if counted else 0, said


def everything(source):
    return source.read(np.arange(len(source)))


def uncached(folder, monkeypatch, **options):
    with monkeypatch.context() as m:
        m.setenv("NEARFAR_CACHE", "off")
        return open_source(folder, **options).train


def held(folder, kind="pixels"):
    return sorted(folder.glob(f"*.{kind}"))


def left_over(folder):
    return list(folder.glob(".*.tmp"))


def script(text, *words, **options):
    """Start a Python process on some lines; it prints JSON."""
    return subprocess.Popen([sys.executable, "-W", "error", "-c", textwrap.dedent(text), *map(str, words)],
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)  # fmt: skip


def result(process):
    out, error = process.communicate(timeout=60)
    assert process.returncode == 0, error
    return json.loads(out.splitlines()[-1])


def test_a_second_opening_opens_no_image(photos):
    """Counted by the interpreter itself, which reports every file that is opened."""
    told = result(script("""
        import json, sys
        from nearfar.data import open_source
        folder, seen, sums = sys.argv[1], [], []
        sys.addaudithook(lambda event, args: seen.append(str(args[0])) if event == "open" else None)
        for _ in range(2):
            seen.clear()
            source = open_source(folder).train
            sums.append(int(source.read(range(len(source))).sum()))
            sums.append(len([path for path in seen if path.startswith(folder + "/")]))
        print(json.dumps(sums))
        """, photos))  # fmt: skip
    assert told[0] == told[2]
    assert told[1] >= 60
    assert told[3] == 0


def test_epochs_never_touch_a_decoder(photos, monkeypatch):
    want = everything(uncached(photos, monkeypatch))
    source = opened(photos)[0]
    shutil.rmtree(photos)  # there is nothing left to decode
    loader = Loader(source, 16, 0)
    for batch in loader.iterate(0, 3 * loader.steps_per_epoch):
        np.testing.assert_array_equal(batch.content, want[batch.index])


def test_what_training_opened_is_there_for_whoever_uses_the_run(photos, tmp_path, capfd):
    run = nearfar.train(photos, out=tmp_path / "run", steps=2, batch=8, width=4, show=True, evaluate=False)
    assert "decoding" in capfd.readouterr().err
    assert run.recipe.image_size == 32
    assert opened(photos, image_size=32, channels=3)[1] == 0  # as evaluate and embed ask
    assert run.embed(photos).shape[0] == 60
    assert len(held(tmp_path / "cache")) == 1


@pytest.mark.parametrize(("size", "channels"), [(0, 0), (24, 3), (40, 1)])
def test_the_same_pixels_cached_in_memory_and_streamed(tmp_path, monkeypatch, size, channels):
    folder = tmp_path / "mixed"
    write(folder / "a.jpg", 0, (400, 300), quality=80)
    write(folder / "b.png", 1, (40, 50))
    write(folder / "c.bmp", 2, (33, 31))
    Image.fromarray(np.arange(1600, dtype=np.uint16).reshape(40, 40) * 40).save(folder / "d.png")
    write(folder / "e.tiff", 3, (50, 60), compression="tiff_lzw")
    exif = Image.Exif()
    exif[0x0112] = 6
    write(folder / "f.jpg", 4, (64, 48), exif=exif)
    write(folder / "g.png", 5, (50, 50))
    os.truncate(folder / "g.png", 2**26 + 1)  # too long to be read at once
    sources = [uncached(folder, monkeypatch, image_size=size, channels=channels)]
    sources += [opened(folder, image_size=size, channels=channels, cache_gb=gb)[0] for gb in (None, None, 0)]
    for source in sources[1:]:
        np.testing.assert_array_equal(everything(source), everything(sources[0]))
        assert source.names == sources[0].names
        np.testing.assert_array_equal(source.read([-1, 2, 2]), sources[0].read([-1, 2, 2]))


def test_the_number_of_workers_changes_nothing(photos, monkeypatch):
    text = """
        import hashlib, json, os, sys
        from nearfar.data import open_source
        from nearfar.data.workers import workers
        os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1])
        sums = [workers()]
        for gb in (None, 0):
            source = open_source(sys.argv[1], cache_gb=gb).train
            sums.append(hashlib.sha256(source.read(range(len(source))).tobytes()).hexdigest())
        print(json.dumps(sums))
        """
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system binds no process to a core")
    count, cached, streamed = result(script(text, photos))
    want = hashlib.sha256(everything(uncached(photos, monkeypatch)).tobytes()).hexdigest()
    assert (count, cached, streamed) == (2, want, want)


def test_a_changed_image_is_decoded_anew_and_only_it(photos, tmp_path, own):
    for i in range(20):
        write(photos / "b" / f"{i}.bmp", i)
    time.sleep(SETTLED)
    assert opened(photos)[1] == 80
    path = photos / "b" / "7.bmp"
    before = path.stat()
    write(path, 777)  # a .bmp: of the same size, and set to the same time
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    source, count, _ = opened(photos)
    assert count == 1
    np.testing.assert_array_equal(source.read([source.names.index("b/7.bmp")])[0], np.asarray(Image.open(path)))
    write(photos / "c" / "new.png", 99)
    assert opened(photos)[1] == 1
    (photos / "a" / "0.png").unlink()
    (photos / "a" / "2.png").rename(photos / "c" / "2.png")
    (photos / "a" / "4.png").touch()
    source, count, _ = opened(photos)
    assert count == 0
    assert (len(source), source.classes, source.labels[-2:].tolist()) == (80, ("a", "b", "c"), [2, 2])
    sums = {path.stem: path.stat().st_mtime for path in held(own)}
    assert len(sums) == 4
    assert sorted(sums.values())[2] == 0 < sorted(sums.values())[3]  # what the folder was is the first to go


def test_a_stamp_that_may_repeat_is_not_trusted(tmp_path):
    """A file that changes twice within one tick of the disk's clock has one stamp: a young one says nothing."""
    path, young = tmp_path / "a.bin", 0
    for _ in range(50):
        path.write_bytes(b"x")
        start = path.stat().st_ctime_ns
        stamps = survey(tmp_path, ["a.bin"]).stamps
        if time.time_ns() - start < 5e7:  # this machine was not held up
            young += 1
            assert (stamps == -1).all()
    assert young
    time.sleep(SETTLED)
    assert survey(tmp_path, ["a.bin"]).stamps[0, 2] == path.stat().st_ctime_ns


def test_the_same_content_elsewhere_shares_one_file(photos, tmp_path, own):
    opened(photos)
    shutil.copytree(photos, tmp_path / "copy", copy_function=shutil.copyfile)
    assert opened(tmp_path / "copy")[1] == 0
    assert len(held(own)) == 1
    source, count, _ = opened(photos / "a")  # a part of it
    assert (len(source), count, len(held(own))) == (30, 0, 2)


def test_any_sequence_of_changes_gives_what_decoding_anew_gives(tmp_path, monkeypatch):
    """Without a pause, so that stamps may repeat; sizes and grey images change what all are decoded to."""
    folder, rng = tmp_path / "p", random.Random(0)
    for i in range(8):
        write(folder / f"{i}.bmp", i, (12, 12))
    for step in range(30):
        path = rng.choice(sorted(folder.iterdir()))
        kind = rng.randrange(7)
        if kind == 0 and len(list(folder.iterdir())) > 4:
            path.unlink()
        elif kind == 1:
            path.rename(folder / f"{step}{path.suffix}")
        elif kind == 2:
            path.write_bytes(path.read_bytes()[: rng.randrange(1, 500)])
        elif kind == 3:
            write(folder / f"{step}.png", step, (rng.choice([12, 20]), 12))
        else:
            before = path.stat()
            write(path, step, (12, 12))
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        want = uncached(folder, monkeypatch, max_bad=0.9)
        got = opened(folder, max_bad=0.9, cache_gb=rng.choice([None, None, 0]))[0]
        assert (got.shape, got.names, got.skipped) == (want.shape, want.names, want.skipped), step
        np.testing.assert_array_equal(everything(got), everything(want))


@pytest.mark.parametrize("gb", [None, 0])
def test_bad_images_are_remembered_with_their_reasons(photos, gb):
    (photos / "a/0.png").write_bytes((photos / "a/0.png").read_bytes()[:200])
    (photos / "b/1.png").write_bytes(b"no picture")
    time.sleep(SETTLED)
    first, count, _ = opened(photos, cache_gb=gb)
    again, none, _ = opened(photos, cache_gb=gb)
    assert (count, none) == (59, 0)  # one has no header to decode by
    assert [s.name for s in first.skipped] == ["a/0.png", "b/1.png"]
    assert first.skipped == again.skipped
    assert first.names == again.names
    np.testing.assert_array_equal(everything(first), everything(again))
    for _ in range(2):
        with pytest.raises(ValueError, match=r"2 of 60 images cannot be read \(3.33% > 2%\), the first a/0.png"):
            opened(photos, cache_gb=gb, max_bad=0.02)


def test_a_failure_that_may_pass_is_tried_again(photos, tmp_path):
    (photos / "a" / "late.png").symlink_to(tmp_path / "late.png")
    source = opened(photos)[0]
    assert "No such file" in source.skipped[0].reason
    write(tmp_path / "late.png", 500)
    source, count, _ = opened(photos)
    assert (len(source), count, source.skipped) == (61, 1, ())


def test_an_image_that_found_no_memory_is_tried_again(photos):
    Image.new("RGB", (7000, 7000)).save(photos / "a" / "huge.png", compress_level=1)  # 147 MB decoded
    time.sleep(SETTLED)
    told = result(script("""
        import json, resource, sys
        from nearfar.data import open_source
        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + 220_000_000,) * 2)
        source = open_source(sys.argv[1], image_size=32).train
        print(json.dumps([len(source), [[s.name, s.reason] for s in source.skipped]]))
        """, photos))  # fmt: skip
    assert told == [60, [["a/huge.png", "MemoryError"]]]
    source, count, _ = opened(photos, image_size=32)
    assert (len(source), count, source.skipped) == (61, 1, ())


def test_names_of_any_bytes(tmp_path, monkeypatch):
    for i, name in enumerate((b"a\nb.png", b"caf\xe9.png", "caf\u00e9.png".encode())):
        write(tmp_path / "p" / f"{i}.png", i)
        os.rename(tmp_path / "p" / f"{i}.png", os.path.join(os.fsencode(tmp_path / "p"), name))
    time.sleep(SETTLED)
    for count in (3, 0):
        source, decoded, said = opened(tmp_path / "p")
        assert (decoded, said) == (count, [])
        assert source.names == uncached(tmp_path / "p", monkeypatch).names


def test_killed_while_writing(photos, own, monkeypatch):
    process = script("""
        import sys, time
        from nearfar.data import open_source
        def progress(done, total):
            print(done, flush=True)
            time.sleep(60)
        open_source(sys.argv[1], progress=progress)
        """, photos)  # fmt: skip
    assert process.stdout.readline() == "32\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert left_over(own)
    assert not held(own)
    source, count, said = opened(photos)
    assert (count, said) == (60, [])
    np.testing.assert_array_equal(everything(source), everything(uncached(photos, monkeypatch)))
    assert not left_over(own)


def test_what_another_killed_process_left_goes_too(photos, tmp_path, own):
    shutil.copytree(photos, tmp_path / "other")
    process = script("""
        import os, signal, sys
        from nearfar.data import open_source
        open_source(sys.argv[1], progress=lambda *at: os.kill(os.getpid(), signal.SIGKILL))
        """, tmp_path / "other")  # fmt: skip
    process.communicate()
    assert len(left_over(own)) == 1
    opened(photos)
    assert not left_over(own)


def test_processes_at_once_decode_once(photos, own, tmp_path, monkeypatch):
    text = """
        import hashlib, json, os, sys, time
        from nearfar.data import open_source
        counted, said = [0], []
        def progress(done, total):
            counted[0] = done
            time.sleep(0.2)
        print("ready", flush=True)
        while not os.path.exists(sys.argv[2]):
            time.sleep(0.001)
        source = open_source(sys.argv[1], progress=progress, say=said.append).train
        sha = hashlib.sha256(source.read(range(len(source))).tobytes()).hexdigest()
        print(json.dumps([counted[0], sha, said]))
        """
    processes = [script(text, photos, tmp_path / "go") for _ in range(3)]
    for process in processes:
        process.stdout.readline()
    (tmp_path / "go").touch()
    told = [result(process) for process in processes]
    want = hashlib.sha256(everything(uncached(photos, monkeypatch)).tobytes()).hexdigest()
    assert sorted(count for count, _, _ in told) == [0, 0, 60]
    assert {sha for _, sha, _ in told} == {want}
    assert [len(said) for count, _, said in told if count] == [0]
    assert all("another process is decoding it" in said[0] for count, _, said in told if not count)
    assert len(held(own)) == 1
    assert not left_over(own)


def test_readers_at_once(photos):
    source = opened(photos)[0]
    want, wrong = everything(source), []
    fresh = opened(photos)[0]

    def read(seed):
        rng = np.random.default_rng(seed)
        for _ in range(50):
            index = rng.integers(0, 60, 16)
            if not (fresh.read(index) == want[index]).all():
                wrong.append(seed)

    threads = [threading.Thread(target=read, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize(("harm", "decodes"), [
    (lambda pixels, index: os.truncate(pixels, 5000), 60),
    (lambda pixels, index: os.truncate(pixels, 0), 60),
    (lambda pixels, index: flip(pixels, 40), 60),
    (lambda pixels, index: flip(pixels, -1), 60),
    (lambda pixels, index: flip(index, 5000), 0),
    (lambda pixels, index: os.truncate(index, 3000), 0),
])  # fmt: skip
def test_damage_is_said_in_one_line_and_mended(photos, own, monkeypatch, harm, decodes):
    opened(photos)
    harm(held(own)[0], held(own, "index")[0])
    source, count, said = opened(photos)
    assert count == decodes
    assert len(said) == 1
    assert "\n" not in said[0]
    assert f": {'decoding' if decodes else 'looking through'} {photos} anew" in said[0]
    np.testing.assert_array_equal(everything(source), everything(uncached(photos, monkeypatch)))
    assert opened(photos)[1:] == (0, [])


class Armed:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_nothing_is_unpickled(photos, own, tmp_path):
    opened(photos)
    with open(held(own, "index")[0], "wb") as file:
        np.savez(file, about=np.array([Armed(tmp_path / "sprung")], object))
    _, count, said = opened(photos)
    assert (count, len(said)) == (0, 1)
    assert not (tmp_path / "sprung").exists()


def test_a_damaged_row_is_decoded_anew_when_it_is_read(photos, own, monkeypatch):
    want = everything(uncached(photos, monkeypatch))
    opened(photos)
    flip(held(own)[0], 4096 + 3 * 3072 + 100)
    source, count, said = opened(photos)
    assert count == 0
    np.testing.assert_array_equal(source.read([1, 2]), want[[1, 2]])
    assert not said
    for _ in range(2):
        np.testing.assert_array_equal(everything(source), want)
    assert len(said) == 1
    assert "a row is not as it was written" in said[0]
    assert not held(own)  # the next opening writes it anew
    assert opened(photos)[1] == 60
    np.testing.assert_array_equal(everything(opened(photos)[0]), want)


def three_sets(tmp_path):
    for name in "abc":
        for i in range(40):
            write(tmp_path / name / f"{i}.png", hash((name, i)) % 2**32)
    time.sleep(SETTLED)
    return [tmp_path / name for name in "abc"]


def test_the_folder_is_bounded_and_what_was_not_used_for_longest_goes(tmp_path, own, monkeypatch):
    a, b, c = three_sets(tmp_path)
    monkeypatch.setenv("NEARFAR_CACHE_GB", str(330_000 / 2**30))  # two sets of 128 kB
    own.mkdir()
    (own / "thesis.txt").write_text("words")
    (own / "mine.pixels").write_text("words")  # somebody else's
    for folder in (a, b, a):  # a is the last used
        opened(folder)
        time.sleep(0.02)
    assert len(held(own)) == 3
    assert opened(c)[1:] == (40, [])
    assert len(held(own)) == 3
    assert sum(p.stat().st_size for p in own.iterdir()) <= 330_000
    assert opened(a)[1:] == (0, [])
    assert opened(b)[1:] == (40, [])
    assert (own / "thesis.txt").read_text() == (own / "mine.pixels").read_text() == "words"


def test_what_is_in_use_stays(tmp_path, own, monkeypatch):
    a, b, _ = three_sets(tmp_path)
    monkeypatch.setenv("NEARFAR_CACHE_GB", str(200_000 / 2**30))  # one set
    source = opened(a)[0]
    want, kept = everything(source), held(own)
    _, count, said = opened(b)
    assert (count, held(own)) == (40, kept)
    assert len(said) == 1
    assert "is bounded to 195 kB and what it holds is in use; it is kept in memory" in said[0]
    np.testing.assert_array_equal(everything(source), want)
    del source
    gc.collect()
    assert opened(b)[2] == []
    assert held(own) != kept


def test_a_set_that_fills_the_bound_is_mended_when_it_changes(tmp_path, own, monkeypatch):
    a, _, _ = three_sets(tmp_path)
    monkeypatch.setenv("NEARFAR_CACHE_GB", str(200_000 / 2**30))
    opened(a)
    write(a / "3.png", 12345)
    source, count, said = opened(a)
    assert (count, said, len(held(own))) == (40, [], 1)  # not both fit, so the old one makes way
    np.testing.assert_array_equal(everything(source), everything(uncached(a, monkeypatch)))


@contextlib.contextmanager
def small_disk(folder, size):
    folder.mkdir()
    said = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder], capture_output=True)
    if said.returncode:
        pytest.skip("no small disk can be mounted: this test wants root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def test_a_disk_too_small_is_said_and_training_goes_on(photos, tmp_path, monkeypatch):
    with small_disk(tmp_path / "disk", "128k") as disk:
        monkeypatch.setenv("NEARFAR_CACHE", str(disk / "cache"))
        source, count, said = opened(photos)
        assert count == 60
        assert len(said) == 1
        for words in (str(photos), "201 kB", f"{disk / 'cache'} has 12", "free; it is kept in memory: free some space",
                      "NEARFAR_CACHE"):  # fmt: skip
            assert words in said[0], said
        np.testing.assert_array_equal(everything(source), everything(uncached(photos, monkeypatch)))
        assert not held(disk / "cache")
        streamed, _, said = opened(photos, cache_gb=100_000 / 2**30)
        assert streamed.starter is not None
        assert not left_over(disk / "cache")


def test_a_disk_that_fills_up_meanwhile(photos, tmp_path, monkeypatch):
    with small_disk(tmp_path / "disk", "512k") as disk:
        monkeypatch.setenv("NEARFAR_CACHE", str(disk / "cache"))
        said, filled = [], []

        def fill(done, total):
            if not filled:
                filled.append(done)
                with contextlib.suppress(OSError), open(disk / "filler", "wb", 0) as file:
                    while True:
                        file.write(bytes(4096))

        source = open_source(photos, progress=fill, say=said.append).train
        assert len(said) == 1
        assert "No space left on device; it is kept in memory" in said[0]
        assert not held(disk / "cache")
        assert not left_over(disk / "cache")
        np.testing.assert_array_equal(everything(source), everything(uncached(photos, monkeypatch)))
        (disk / "filler").unlink()
        assert opened(photos)[1:] == (60, [])
        assert opened(photos)[1:] == (0, [])


def test_a_file_that_may_not_grow(photos, own, monkeypatch):
    """As under a quota."""
    told = result(script("""
        import hashlib, json, resource, sys
        from nearfar.data import open_source
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        said = []
        source = open_source(sys.argv[1], say=said.append).train
        print(json.dumps([hashlib.sha256(source.read(range(60)).tobytes()).hexdigest(), said]))
        """, photos))  # fmt: skip
    assert told[0] == hashlib.sha256(everything(uncached(photos, monkeypatch)).tobytes()).hexdigest()
    assert len(told[1]) == 1
    assert "File too large; it is kept in memory" in told[1][0]
    assert not left_over(own)
    assert not held(own)


def test_a_cache_that_cannot_be_written(photos, monkeypatch):
    monkeypatch.setenv("NEARFAR_CACHE", "/dev/null/cache")
    source, count, said = opened(photos)
    assert (len(source), count, len(said)) == (60, 60, 1)
    assert "/dev/null/cache: Not a directory; it is kept in memory" in said[0]


def test_off_and_bad_bounds(photos, own, monkeypatch):
    monkeypatch.setenv("NEARFAR_CACHE", "off")
    assert [opened(photos)[1:], opened(photos)[1:]] == [(60, []), (60, [])]
    assert not own.exists()
    monkeypatch.delenv("NEARFAR_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(own / "xdg"))
    opened(photos)
    assert len(held(own / "xdg" / "nearfar")) == 1
    assert (own / "xdg" / "nearfar").stat().st_mode & 0o777 == 0o700  # photos are private
    for bad in ("plenty", "-1", "nan"):
        monkeypatch.setenv("NEARFAR_CACHE_GB", bad)
        with pytest.raises(ValueError, match=f"NEARFAR_CACHE_GB = {bad}: give a number of gigabytes"):
            opened(photos)


def test_a_set_too_large_streams_and_is_checked_once(photos, own):
    (photos / "a/0.png").write_bytes((photos / "a/0.png").read_bytes()[:200])
    time.sleep(SETTLED)
    want = everything(opened(photos)[0])
    source, count, said = opened(photos, cache_gb=1e-6)
    assert (count, len(source), len(said)) == (60, 59, 1)
    for words in ("60 images of 32×32×3 take 201 kB, more than the cache's 1.05 kB", "decoded as they are read",
                  "NEARFAR_CACHE_GB"):  # fmt: skip
        assert words in said[0]
    again, count, _ = opened(photos, cache_gb=1e-6)
    assert (count, again.names, again.skipped) == (0, source.names, source.skipped)
    loader = Loader(again.subset(np.arange(58)), 8, 3)
    order = [loader.indices(step) for step in range(14)]
    for step, batch in enumerate(loader.iterate(0, 14)):
        np.testing.assert_array_equal(batch.index, order[step])
        np.testing.assert_array_equal(batch.content, want[batch.index])
    assert step == 13


def test_workers_are_several_batches_ahead_and_stop_when_they_are_told(photos, monkeypatch):
    want = everything(uncached(photos, monkeypatch))
    source = opened(photos, cache_gb=0)[0]
    batches = Loader(source, 8, 0).iterate()
    next(batches)
    time.sleep(0.5)
    shutil.rmtree(photos)  # what comes now had been decoded before it was asked for
    for _ in range(5):
        batch = next(batches)
        np.testing.assert_array_equal(batch.content, want[batch.index])
    with pytest.raises(ValueError, match=r"\.png cannot be read any more: "):
        list(batches)
    batches.close()
    assert not [t for t in threading.enumerate() if t.name == "nearfar-loader"]
    assert not any("nearfar" in getattr(entry[3], "pattern", "") for entry in warnings.filters)  # Pillow may warn again


def test_memory_stays_flat_while_a_set_is_written(tmp_path):
    for i in range(40):
        write(tmp_path / "p" / f"{i}.png", i, (8, 8))
    if not os.path.exists("/proc/self/status"):
        pytest.skip("this system does not say how much memory a process had")
    for i in range(40, 1200):
        os.link(tmp_path / "p" / f"{i % 40}.png", tmp_path / "p" / f"{i}.png")
    before, after, wrote = result(script("""
        import json, sys, time
        from nearfar.data import open_source
        def peak():
            with open("/proc/self/status") as file:
                return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) // 1024
        before = peak()
        def hold_up(done, total):  # as a slow disk does: decoders must not run away
            time.sleep(2 * (done == 32))
        source = open_source(sys.argv[1], image_size=224, progress=hold_up).train
        print(json.dumps([before, peak(), len(source) * 224 * 224 * 3 >> 20]))
        """, tmp_path / "p"))  # fmt: skip
    assert wrote == 172
    assert after - before < 100


def test_pool_keeps_order_and_names_what_may_pass():
    def job(i):
        time.sleep(0.001 * (i % 3))
        if i == 5:
            raise FileNotFoundError(2, "gone")
        if i == 6:
            raise ValueError("torn")
        return i

    got = list(each(job, range(40), ahead=7))
    assert [g for g in got if not isinstance(g, Failed)] == [i for i in range(40) if i not in (5, 6)]
    assert [got[5].lasting, got[6].lasting] == [False, True]
    assert attempt(job, 6).why == "torn"


def test_sizes_are_said_as_a_person_would():
    said = [cache.text(n) for n in (12, 3_500_000, 42 * 2**30, 2000 * 2**30)]
    assert said == ["12 bytes", "3.34 MB", "42 GB", "2,000 GB"]

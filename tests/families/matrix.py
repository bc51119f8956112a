"""Check every family, and write the table of results.

    python tests/families/matrix.py --write docs/reference/architectures.md

Options narrow what is run (`--families llama,qwen3`, `--groups causal`), keep the results as JSON (`--json FILE`, which
is read first, so that a run can be continued or some families be repeated), and say how many processes work (`--jobs`).
"""

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "src")]

LIMIT = 300  # seconds for one family
QUESTIONS = ("self_merge", "average", "loads", "restack")
COLUMNS = ("family", "self-merge", "average", "loads", "re-stack", "remark")
COMMAND = "python tests/families/matrix.py --write docs/reference/architectures.md"


def check(name):
    """The answers about one family; {"unbuilt": reason} if there is no small one."""
    import checking
    import zoo

    try:
        zoo.make_config(name)
        with tempfile.TemporaryDirectory() as root:
            answers = checking.check_family(name, Path(root))
            return {
                key: told.replace(f"{root}/", "") if isinstance(told, str) else told for key, told in answers.items()
            }
    except Exception as error:
        text = " ".join(str(error).split())
        return {"unbuilt": f"{type(error).__name__}: {text[:300]}"}


def _put(name, pipe):
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # progress bars
    pipe.put(json.dumps(check(name)))


def check_apart(name):
    """The same in a process of its own, which may take `LIMIT` seconds and may crash."""
    context = multiprocessing.get_context("fork")
    pipe = context.SimpleQueue()
    process = context.Process(target=_put, args=(name, pipe))
    began = time.monotonic()
    process.start()
    process.join(LIMIT)
    if process.is_alive():
        process.kill()
        return {"unbuilt": f"not done after {LIMIT} s"}
    answers = json.loads(pipe.get()) if not pipe.empty() else {"unbuilt": f"process ended with {process.exitcode}"}
    return {**answers, "seconds": round(time.monotonic() - began, 1)}


def run(names, jobs, results, keep):
    """Check families in several processes, adding to `results` and calling `keep` after each."""
    import torch
    import transformers

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    _warm_up()
    with ThreadPoolExecutor(jobs) as pool:
        for name, answers in zip(names, pool.map(check_apart, names), strict=True):
            results[name] = answers
            keep()
            print(name, summary(answers), flush=True)


def _warm_up():
    """Import before forking what every family needs, which takes most of the time otherwise."""
    import checking  # noqa: F401
    import zoo

    import mergekit.engine
    import mergekit.engine.local  # noqa: F401

    zoo.make_model("llama")


def summary(answers):
    """One line about a family."""
    if "unbuilt" in answers:
        return f"NOT BUILT {answers['unbuilt']}"
    wrong = {question: answers[question] for question in QUESTIONS if answers[question] != "yes"}
    return (
        f"{answers['seconds']} s "
        + (json.dumps(wrong, ensure_ascii=False) if wrong else "all")
        + " "
        + answers["remark"]
    )


def _cell(answer):
    return "yes" if answer == "yes" else "–" if answer.startswith("refused") else "no"


def row(name, answers):
    """A family's line of the table."""
    if "unbuilt" in answers:
        return f"| {name} | | | | | {_plain('not built: ' + answers['unbuilt'])} |"
    cells = [_cell(answers[question]) for question in QUESTIONS]
    reasons = [answers[question] for question in QUESTIONS if answers[question] != "yes"]
    remark = "; ".join(dict.fromkeys([*reasons, *filter(None, [answers["remark"]])]))
    return f"| {name} | {' | '.join(cells)} | {_plain(remark)} |"


def _plain(text):
    text = text.replace("|", "\\|").replace("<", "&lt;")
    return text if len(text) < 200 else text[:199] + "…"


def table(results, groups):
    """The generated part of the page."""
    parts = []
    built = [answers for answers in results.values() if "unbuilt" not in answers]
    counts = {question: sum(answers[question] == "yes" for answers in built) for question in QUESTIONS}
    parts.append(
        f"{len(built)} families could be built small: {counts['self_merge']} come out of a self-merge byte for byte, "
        f"{counts['average']} are averaged right, {counts['loads']} averages load without a missing or unexpected key, "
        f"{counts['restack']} can be re-stacked."
    )
    for group in groups:
        names = [name for name, (own, _) in groups_of().items() if own == group and name in results]
        if names:
            head = "| " + " | ".join(COLUMNS) + " |\n|" + " --- |" * len(COLUMNS)
            rows = "\n".join(row(name, results[name]) for name in names)
            parts.append(f"## {TITLES[group]}\n\n{head}\n{rows}")
    return "\n\n".join(parts)


TITLES = {
    "causal": "Language models",
    "encoder": "Encoders",
    "seq2seq": "Encoder and decoder",
    "vision-language": "Vision and language",
    "audio": "Audio",
    "dual": "Images, and pairs of text with images or sound",
}


def groups_of():
    """The families of the matrix."""
    import zoo

    return zoo.families()


def write(path, results):
    """Replace what stands between the markers of a page."""
    import transformers

    start, end = "<!-- families: begin -->", "<!-- families: end -->"
    before, _, rest = path.read_text(encoding="utf-8").partition(start)
    after = rest.partition(end)[2]
    body = f"Made with transformers {transformers.__version__}. {table(results, TITLES)}"
    path.write_text(f"{before}{start}\n\n{body}\n\n{end}{after}", encoding="utf-8")


def main():
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--write", type=Path, help="page whose table is replaced")
    parser.add_argument("--json", type=Path, help="results; read first if the file exists")
    parser.add_argument("--families", help="names, with commas; repeated even if the results have them")
    parser.add_argument("--groups", help="groups of families, with commas")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    options = parser.parse_args()
    results = json.loads(options.json.read_text()) if options.json and options.json.exists() else {}
    known = groups_of()
    groups = options.groups.split(",") if options.groups else list(TITLES)
    if options.families is not None:
        names = [name for name in options.families.split(",") if name]
    else:
        names = [name for name, (group, _) in known.items() if group in groups and name not in results]

    def keep():
        if options.json:
            options.json.write_text(json.dumps(results, indent=1, ensure_ascii=False))

    run(names, options.jobs, results, keep)
    if options.write:
        write(options.write, results)


if __name__ == "__main__":
    main()

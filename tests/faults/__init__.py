"""What goes wrong outside the program: wrong inputs, hostile files, kills, full disks.

Wrong inputs are a table. Each area of it is one module of `faults.wrong` with a function
``cases()`` that yields records of `faults.table.Case`; modules are found by themselves. A case is a
command line, what to put into its empty folder first, and what has to come out::

    def cases():
        yield Case(
            "prompts in UTF-16",
            ["sample", RUN, "--prompts", "p.txt", "--out", "o"],  # RUN: see `faults.table`
            setup=lambda folder: (folder / "p.txt").write_text("a cat", "utf-16"),
            names=("p.txt", "UTF-8"),
        )

It runs by the program's own entry point, in a process and an empty working folder of its own.

- A refused case (the default) must exit with code 2 and say so in exactly one line on stderr,
  without a traceback or control characters, that holds all of ``names`` (file, key, cure), and must
  leave its folder as ``setup`` left it.
- An accepted case (``check=...``) must exit with code 0, and ``check(result)`` asserts what is
  right: pictures, figures, files. There is no accepted case without a check.

``python -m faults.table [AREA [WORDS]]``, with ``src`` and ``tests`` on PYTHONPATH, runs an area
(or those of its cases whose names fit an expression), prints what breaks the rules, and counts.
``make test`` runs a few of each area, ``make test-slow`` all of them.
"""

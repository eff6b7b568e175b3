"""The soak: what a run survives, what is noticed of damage, and what wrong input does; see ``docs/reliability.md``.

Run with ``make soak`` or ``python -m benchmarks.soak``; see ``--help``. Every case is a function of its number, so that
a failure repeats with the number that it prints.
"""

"""How the embedded tiny world was made: its pipeline and its feature net, trained from nothing.

    PYTHONPATH=src:tools python -m toyworld_training train

Not part of the installed package, which only uses what comes out: nobody needs this to distil.
"""

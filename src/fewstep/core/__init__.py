"""The mathematics: paths, schedules, solver, noise and the records they share; no models."""

"""Complete runs as YAML, shipped with the package; `fewstep.config.shipped` finds one by name."""

"""Small helpers without mathematics: errors, files, resources, hardware, YAML."""

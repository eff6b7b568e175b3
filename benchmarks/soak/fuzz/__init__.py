"""Made-up input of every kind, by grammars: settings, names, layer expressions, arguments, checkpoints, data files."""

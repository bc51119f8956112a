"""What Python programs call: merges of recipes, and of tensors in memory. :mod:`mergekit` names it all."""

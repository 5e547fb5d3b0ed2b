"""A family as a third party would write it: one package, and one line in the table of families."""

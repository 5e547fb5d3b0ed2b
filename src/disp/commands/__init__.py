"""The commands of the command line, a module for each stage of the work; heavy imports happen inside them."""

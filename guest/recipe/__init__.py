"""How the bundled guest is built: one module per concern, standard library only."""

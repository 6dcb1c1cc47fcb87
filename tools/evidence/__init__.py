"""The evidence: what every strategy does to real models. ``make evidence`` runs this; docs/evidence.md shows it."""

"""Run directories read: compared, drawn, tabled. No torch."""

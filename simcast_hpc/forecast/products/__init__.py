"""Products of a forecast: accumulations, probabilities, percentiles, maps and series, and the files that hold them."""

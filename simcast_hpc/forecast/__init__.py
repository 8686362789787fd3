"""From a run folder, or files of radar, to forecasts."""

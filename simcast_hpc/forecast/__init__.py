"""Operational forecasts: from radar files to CF netCDF, Zarr and pictures, once or for every new file in a folder."""

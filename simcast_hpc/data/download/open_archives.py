"""The open radar archives that ``simcast data download`` knows.

Hosts, folders and names were taken from public documentation and programs, named in ``checked``; no live service was
asked. A host that moved can be given with ``--endpoint``.
"""

from collections.abc import Mapping
from datetime import date

from simcast_hpc.config import ConfigError

from .archive_description import Archive, Product

CHECKED_ON = "2026-11-30"
MLCAST_URL = "https://object-store.os-api.cci2.ecmwf.int"
_CC_BY = "CC-BY-4.0"
_CC_BY_TERMS = "https://creativecommons.org/licenses/by/4.0/"
# Values by FMI's page about the bucket; the tags of the files need not contain them.
_FMI_IMPORT = '--importer "geotiff unit=dBZ scale=0.5 offset=-32 nodata=255 undetect=0"'
_RADKLIM = "climate_environment/CDC/grids_germany/5_minutes/radolan/reproc/2017_002/bin/%Y"


def _opera(name: str, what: str, step: int, first: date, last: date | None) -> Product:
    return Product(
        what, "s3", (f"OPERA@%Y%m%dT%H%M@0@{name}.h5",), step, first, last, folder="%Y/%m/%d/OPERA/COMP/OPERA@%Y%m%dT"
    )


def _store(
    path: str, what: str, step: int, first: date, last: date, *, terms: str, attribution: str, title: str,
    license: str = _CC_BY,
) -> Archive:  # fmt: skip
    product = Product(what, "zarr", (), step, first, last, folder=f"mlcast-source-datasets/{path}")
    return Archive(
        title, MLCAST_URL, {"store": product}, license, attribution, terms,
        "catalog of mlcast-community/mlcast-datasets and its documentation",
    )  # fmt: skip


_ITALY = _store(
    "IT-DPC-SRI/v0.1.0/italian-radar-dpc-sri.zarr", "rain rate, 1 km", 5, date(2010, 1, 1), date(2025, 12, 31),
    license="CC-BY-SA-4.0", terms="https://creativecommons.org/licenses/by-sa/4.0/",
    attribution="Dipartimento della Protezione Civile (DPC); processed by Fondazione Bruno Kessler (IT-DPC-SRI)",
    title="Italy, DPC surface rain intensity (mlcast Zarr store)",
)  # fmt: skip

ARCHIVES: Mapping[str, Archive] = {
    "opera": Archive(
        "Europe, EUMETNET OPERA composites",
        "https://s3.waw3-1.cloudferro.com/openradar-archive",
        {
            "dbzh": _opera("DBZH", "reflectivity, 1 km, ODIM HDF5 (CIRRUS)", 5, date(2024, 7, 1), None),
            "rate": _opera("RATE", "rain rate, 2 km, ODIM HDF5 (NIMBUS)", 15, date(2024, 7, 1), None),
            "odyssey-dbzh": _opera(
                "DBZH_QIND", "reflectivity, 2 km, ODIM HDF5 (ODYSSEY)", 15, date(2011, 10, 1), date(2024, 10, 31)
            ),
            "odyssey-rate": _opera(
                "QIND_RATE", "rain rate, 2 km, ODIM HDF5 (ODYSSEY)", 15, date(2011, 10, 1), date(2024, 10, 31)
            ),
        },
        _CC_BY,
        "EUMETNET OPERA",
        _CC_BY_TERMS,
        "EUMETNET/openradardata-documentation; opera data source of NVIDIA/earth2studio",
    ),
    "knmi": Archive(
        "Netherlands, KNMI real-time corrected precipitation",
        "https://api.dataplatform.knmi.nl/open-data/v1",
        {
            "rtcor": Product(
                "5-minute accumulation, 1 km, KNMI HDF5", "knmi", ("RAD_NL25_RAC_RT_%Y%m%d%H%M.h5",), 5,
                date(2018, 12, 19), folder="datasets/nl_rdr_data_rtcor_5m/versions/1.0",
                listing_begin="RAD_NL25_RAC_RT_%Y%m%d%H%M",
            ),
            "rtcor-tar": Product(
                "the same files, a tar file per day", "knmi",
                (
                    "RAD25_OPER_R___TARRRT__L2__%Y%m%dT%H%M%S_*.tar",
                    "RAD25_OPER_R___TARRRT__L2__%Y%m%d%H%M%S_*.tar",
                ),
                1440, date(2018, 12, 19), folder="datasets/nl_rdr_data_rtcor_5m_tar/versions/1.0",
                listing_begin="RAD25_OPER_R___TARRRT__L2__%Y%m%d", step_inside=5,
                names_inside=("RAD_NL25_RAC_RT_%Y%m%d%H%M.h5",), frame_kib=100, largest_mib=1024,
            ),
        },
        _CC_BY,
        "KNMI",
        _CC_BY_TERMS,
        "KNMI Data Platform, open data API: names and paging as in public clients of the data set",
        key="KNMI_API_KEY",
        needs_key=True,
        other_hosts=("knmi-kdp-datasets-eu-west-1.s3.eu-west-1.amazonaws.com",),
    ),
    "fmi": Archive(
        "Finland, FMI composite",
        "https://fmi-opendata-radar-geotiff.s3.eu-west-1.amazonaws.com",
        {
            "dbz": Product(
                "reflectivity, 250 m, GeoTIFF", "s3", ("%Y%m%d%H%M_FIN-DBZ-3067-250M.tif",), 5, date(2020, 8, 1),
                folder="%Y/%m/%d/FIN-DBZ-3067-250M/", import_options=_FMI_IMPORT,
            ),
            "dbzh-600m": Product(
                "reflectivity at 600 m, quality controlled, GeoTIFF (names since the renewal of 2026)", "s3",
                ("%Y%m%d%H%M_composite_cappi_600_dbzh_finrad_qc.tif",), 5, date(2026, 1, 1),
                folder="%Y/%m/%d/finrad/", import_options=_FMI_IMPORT,
            ),
        },
        _CC_BY,
        "Finnish Meteorological Institute (FMI)",
        "https://en.ilmatieteenlaitos.fi/open-data-licence",
        "FMI radar data on AWS S3; fmidev/opendata-resources; public programs that read the bucket",
    ),
    "mch": Archive(
        "Switzerland, MeteoSwiss precipitation",
        "https://data.geo.admin.ch",
        {
            "rzc": Product(
                "rain rate, 1 km, ODIM HDF5", "stac", ("rzc%y%j%H%M*.h5",), 5, date(2025, 9, 1), rolling_days=14,
                folder="api/stac/v1/collections/ch.meteoschweiz.ogd-radar-precip/items/%Y%m%d-ch",
            ),
            "cpc": Product(
                "1-hour accumulation with gauges (CombiPrecip), 1 km, ODIM HDF5", "stac",
                ("cpc%y%j%H%M*_00060.*.h5",), 5, date(2025, 9, 1), rolling_days=14,
                folder="api/stac/v1/collections/ch.meteoschweiz.ogd-radar-precip/items/%Y%m%d-ch",
                import_options="--any-interval",
            ),
        },
        _CC_BY,
        "Source: MeteoSwiss",
        "https://opendatadocs.meteoswiss.ch/general/terms-of-use",
        "MeteoSwiss/opendata (documentation of the radar products and of the STAC API)",
        missing_statuses=(403, 404, 410),  # the host answers 403 for a file that does not exist
    ),
    "mrms": Archive(
        "United States, NOAA MRMS",
        "https://noaa-mrms-pds.s3.us-east-1.amazonaws.com",
        {
            "rate": Product(
                "rain rate, 0.01 degree, GRIB2", "s3", ("MRMS_PrecipRate_00.00_%Y%m%d-%H%M%S.grib2.gz",), 2,
                date(2020, 10, 14), folder="CONUS/PrecipRate_00.00/%Y%m%d/",
            ),
            "dbz": Product(
                "quality-controlled composite reflectivity, 0.01 degree, GRIB2", "s3",
                ("MRMS_MergedReflectivityQCComposite_00.50_%Y%m%d-%H%M%S.grib2.gz",), 2, date(2020, 10, 14),
                folder="CONUS/MergedReflectivityQCComposite_00.50/%Y%m%d/",
            ),
        },
        "US Government work, public domain",
        "NOAA/NSSL MRMS",
        "https://registry.opendata.aws/noaa-mrms-pds/",
        "public programs that read the bucket noaa-mrms-pds",
    ),
    "uk": Archive(
        "United Kingdom, Met Office composite",
        "https://met-office-radar-obs-data.s3.eu-west-2.amazonaws.com",
        {
            "rate": Product(
                "rain rate, 1 km, ODIM HDF5", "s3", ("%Y%m%d%H%M_ODIM_ng_radar_rainrate_composite_1km_UK.h5",), 15,
                date(2024, 11, 21), folder="radar/%Y/%m/%d/",
            )
        },
        "CC-BY-SA-4.0",
        "British Crown copyright, the Met Office",
        "https://registry.opendata.aws/met-office-uk-radar-observations/",
        "registry.opendata.aws and public programs that read the bucket met-office-radar-obs-data",
    ),
    "radklim": Archive(
        "Germany, DWD RADKLIM-YW",
        "https://opendata.dwd.de",
        {
            "yw": Product(
                "5-minute accumulation, 1 km, RADOLAN binary; a tar file per month", "files",
                ("YW2017.002_%Y%m.tar",), "month", date(2001, 1, 1), folder=_RADKLIM, step_inside=5,
                names_inside=("raa01-yw2017.002_10000-%y%m%d%H%M-dwd---bin",),
                days_inside=("YW2017.002_%Y%m%d.tar.gz",), frame_kib=1950, largest_mib=4096,
            )
        },
        "GeoNutzV",
        "Deutscher Wetterdienst (DWD), RADKLIM-YW, doi:10.5676/DWD/RADKLIM_YW_V2017.002",
        "https://www.dwd.de/EN/service/legal_notice/legal_notice.html",
        "rdwd and other public programs that read opendata.dwd.de",
    ),
    "dmi": Archive(
        "Denmark, DMI composite",
        "https://opendataapi.dmi.dk/v1/radardata",
        {
            "composite": Product(
                "reflectivity, 500 m, ODIM HDF5, both scan types", "dmi", ("dk.com.%Y%m%d%H%M.500_max.h5",), 5,
                date(2025, 1, 1), folder="collections/composite/items", rolling_days=180,
            ),
            "composite-240km": Product(
                "reflectivity, 500 m, ODIM HDF5, full-range scans only", "dmi", ("dk.com.%Y%m%d%H%M.500_max.h5",), 10,
                date(2025, 1, 1), folder="collections/composite/items", query="scanType=fullRange", rolling_days=180,
            ),
        },
        _CC_BY,
        "Danish Meteorological Institute (DMI)",
        "https://www.dmi.dk/friedata/dokumentation/terms-of-use",
        "documentation of the DMI radar data API and public programs that use it",
        key="DMI_API_KEY",
        key_header=("X-Gravitee-Api-Key", "{}"),
        other_hosts=("dmigw.govcloud.dk",),
    ),
    "fr": Archive(
        "France, Meteo-France radar rainfall",
        "https://huggingface.co",
        {
            "rainfall": Product(
                "5-minute accumulation, 1 km, NPZ; a tar file per year", "huggingface", ("%Y.tar",), "year",
                date(2020, 1, 1), date(2024, 12, 31), folder="datasets/meteofrance/fr-radar-rainfall",
                largest_mib=512 * 1024, import_options=None,
            )
        },
        "etalab-2.0",
        "Meteo-France, 5 Minutes Radar Rainfall over French Mainland Territory (2025)",
        "https://huggingface.co/datasets/meteofrance/fr-radar-rainfall",
        "mlcast-community/mlcast-dataset-FR-MF, which downloads the same files; Hugging Face Hub API",
        key="HF_TOKEN",
        key_header=("Authorization", "Bearer {}"),
        other_hosts=("*.huggingface.co", "*.hf.co"),
    ),
    "it": _ITALY,
    # Stores of the mlcast community, by the names of its catalog
    "radklim_5_minutes": _store(
        "radklim/v0.1.1/5_minutes.zarr", "5-minute accumulation, 1 km", 5, date(2001, 1, 1), date(2023, 12, 31),
        attribution="Deutscher Wetterdienst (DWD), RADKLIM-YW, doi:10.5676/DWD/RADKLIM_YW_V2017.002",
        terms=_CC_BY_TERMS, title="Germany, DWD RADKLIM (mlcast Zarr store)",
    ),
    "dmi_10_minutes": _store(
        "dmi/v0.1.1/dmi_10_minutes.zarr", "reflectivity, 500 m", 10, date(2016, 2, 29), date(2025, 12, 31),
        attribution="Danish Meteorological Institute (DMI)", terms=_CC_BY_TERMS,
        title="Denmark, DMI composite (mlcast Zarr store)",
    ),
    "it_dpc_sri_5min": _ITALY,
    "uk_metoffice_5min": _store(
        "UK-METOFFICE-RADAR/v0.1.0/uk-metoffice-c-band-rain-radar.zarr", "rain rate, 1 km", 5, date(2005, 7, 5),
        date(2025, 12, 31), license="OGL-UK-3.0",
        terms="https://www.nationalarchives.gov.uk/doc/open-government-licence/version/3/",
        attribution="Contains public sector information licensed under the OGL v3.0, Met Office",
        title="United Kingdom, Met Office NIMROD (mlcast Zarr store)",
    ),
    "be_rmi_radclim_mfb_5min": _store(
        "radar_precipitation/BE-RMI-radclim-mfb/v0.1.1/5_minutes.zarr", "rain rate with gauges, 1 km", 5,
        date(2017, 1, 1), date(2023, 11, 30), attribution="Royal Meteorological Institute of Belgium (RMI), RADCLIM",
        terms=_CC_BY_TERMS, title="Belgium, RMI RADCLIM (mlcast Zarr store)",
    ),
    "fr_mf_prate_5min": _store(
        "FR-MF-prate/v0.1.0/fr-mf-prate-5min.zarr", "rain rate, 1 km", 5, date(2020, 1, 1), date(2024, 12, 31),
        license="etalab-2.0", attribution="Meteo-France",
        terms="https://www.etalab.gouv.fr/licence-ouverte-open-licence/",
        title="France, Meteo-France (mlcast Zarr store)",
    ),
}  # fmt: skip


def find_archive(name: str) -> Archive:
    """Return an archive by its name.

    Raises:
        ConfigError: there is no such archive; lists the names.
    """
    if name not in ARCHIVES:
        raise ConfigError(f"the archive {name!r} is unknown; choose sevir, {', '.join(ARCHIVES)}")
    return ARCHIVES[name]

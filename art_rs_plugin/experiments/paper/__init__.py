"""The tables and figures of Cohen et al. 2019 from logs: `catalogue` names them, one file holds each family."""

"""The paper's mathematics: bounds, radii, certificates, curves. NumPy and SciPy only: no torch, no ART, no files."""

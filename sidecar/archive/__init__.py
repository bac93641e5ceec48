"""The .tar.gz of one volume: walk, tar records, blocks, spool. Files only; no Docker, no S3."""

"""Downloads of model files: many kinds of sources, resumed, verified, as jobs that outlast a restart.

Modules:
    check: which files are there already, and which differ from what was recorded.
    contract: what a download is, and what a downloader promises.
    engine: fetches the files of any source into a folder.
    job: a download job as a value, as it is shown and as it is kept.
    jobs: the jobs, bounded in number and kept over a restart.
    lock: one download per folder at a time, over all processes.
    manifest: what was downloaded into a folder, kept in that folder.
    names: file names from sources: which are safe, and which are selected.
    part: a file that is being fetched, its bytes and its checksum so far.
    progress: how far a download is.
    request: what a caller asks for, parsed and checked.
    retry: whether and when a failed attempt is repeated.
    rules: what the operator allows, and which credentials are used.
    settings: the variables.
    sources: where files come from.
    workers: fetch pieces of files in parallel.
"""

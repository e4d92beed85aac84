"""Downloads of model files: many kinds of sources, resumed, verified, as jobs that outlast a restart.

Modules:
    check: which files need not be fetched, and which are not as they should be.
    contract: what a download is, and what a downloader promises.
    engine: the one way in which every source's files get into a folder.
    job: a download job as a value, as it is shown and as it is kept.
    jobs: the jobs; who downloads what to where.
    lock: one download per folder at a time, over all processes.
    manifest: what was downloaded into a folder, kept in that folder.
    names: file names that come from elsewhere, and the choice among them.
    part: a file that is being fetched, its bytes and its checksum so far.
    progress: how far a download is.
    request: what a caller asks for, parsed and checked.
    retry: when an attempt is repeated, and when no more.
    rules: what the operator allows, and which credentials are used.
    settings: the variables.
    sources: where files come from.
    workers: fetch pieces of files in parallel.
"""

"""The family of backends: contract (the promise), table (kind → class), one file per member; members never import each other."""

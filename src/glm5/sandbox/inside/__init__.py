"""The program that runs inside every sandbox: standard library only, no import from the rest of the package.

It is handed to the sandbox as plain files and started with the Python found there (3.10 or newer), as a package named
`inside`: hence its relative imports.
"""

"`pets_nb`, and `python -m pets_nb`: an interrupt ends it in a line before anything is imported, too"
import os, signal

def _stop(number, frame):
    os.write(2, b'pets_nb: interrupted\n')
    os._exit(128+number)

def main():
    "The command: `pets_nb.tools.cli.main`"
    for o in (signal.SIGINT, signal.SIGTERM): signal.signal(o, _stop)
    from pets_nb.tools.cli import main
    return main()

if __name__ == "__main__": raise SystemExit(main())

//! What stands below the options in a command's help.

pub(super) const AFTER_HELP: &str = "\
The first video:  rayreel generate \"a red fox running through snow\" -o fox.mp4
As a service:     rayreel serve, then submit, watch and download from anywhere on this machine

Without --server, a command talks to the server that runs on the data directory; if none does, it \
runs one itself for as long as it takes.
With --json, results are JSON on standard output; an error is one line of JSON, the last on \
standard error.

The exit status tells what went wrong:
  1  anything else             7  try again later
  2  bad request or setting    8  damaged data
  4  no such task              9  the task was cancelled, or expired
  5  not allowed              10  the task failed
  6  conflict                130  left on Ctrl-C

Environment:
  RAYREEL_SERVER        --server
  RAYREEL_TOKEN         sent to that server; a server of this user needs none
  RAYREEL_DATA          --data
  RAYREEL_CONFIG        --config
  RAYREEL_LISTEN        serve --listen
  RAYREEL_WORKER_TOKEN  sent by `worker`
  RAYREEL_ADMIN_KEY     serve: a key with every scope
  RAYREEL_LOG           how much is logged: `debug`, `info,rayreel_server=debug`
  RAYREEL_…             every other setting: `rayreel config default` explains them";

pub(super) const REQUEST_HELP: &str = "\
What is not given is the model's default: `rayreel config show`.

Environment:
  RAYREEL_TOKEN  sent to the server that --server names; a server of this user needs none";

pub(super) const CONFIG_HELP: &str = "\
Settings come from, the later the stronger: the defaults; a file; the environment, RAYREEL_LISTEN
for `listen`, RAYREEL_POOLS__LOCAL__MAX for `pools.local.max`; flags.";

pub(super) const COMPLETIONS_HELP: &str = "\
bash:  source <(rayreel completions bash)
zsh:   rayreel completions zsh >~/.zfunc/_rayreel    (a directory of $fpath)
fish:  rayreel completions fish >~/.config/fish/completions/rayreel.fish";

pub(super) const CLIENT_HELP: &str = "\
Environment:
  RAYREEL_TOKEN  sent to the server that --server names; a server of this user needs none";

pub(super) const GENERATE_HELP: &str = "\
What is not given is the model's default: `rayreel config show`.
Ctrl-C cancels the task; a second Ctrl-C leaves at once.

Environment:
  RAYREEL_TOKEN  sent to the server that --server names; a server of this user needs none";

pub(super) const SERVE_HELP: &str = "\
Ctrl-C or SIGTERM stops it; tasks that are queued stay so.

On 127.0.0.1 and [::1] whoever is on this machine may call, until there is a key; any other address
needs one first: `rayreel keys create`.

Environment:
  RAYREEL_ADMIN_KEY  a key with every scope, of 32 to 200 characters, which is not stored
  RAYREEL_LOG        how much is logged: `debug`, `info,rayreel_server=debug`
  RAYREEL_…          every other setting: `rayreel config default` explains them";

pub(super) const KEYS_HELP: &str = "\
As long as there is no key, whoever is on this machine may call. From the first one on every request
needs one, as `Authorization: Bearer rr_…`; commands of this user on this machine need none.

Environment:
  RAYREEL_TOKEN  sent to the server that --server names; a server of this user needs none";

pub(super) const DOCTOR_HELP: &str = "\
Prints what is wrong, a line each, and exits with 8; with 0 if all is well. A store in a data directory
must not be in use by a server; one in Redis may be, and is checked while it works.";

pub(super) const ADMIN_HELP: &str = "\
For operators: where keys are needed, one with the scope admin; on this machine the user of the data
directory needs none.

Environment:
  RAYREEL_TOKEN  sent to the server that --server names; a server of this user needs none";

pub(super) const WORKER_HELP: &str = "\
Ctrl-C or SIGTERM lets it finish its task and leave; a second one ends it at once.

Environment:
  RAYREEL_WORKER_TOKEN  sent to the server; by default that of the server on the data directory
  RAYREEL_LOG           how much is logged: `debug`, `info,rayreel_worker=debug`";

pub(super) const MODELS_HELP: &str = "\
From a checkpoint to a video:
  rayreel models add wan2.2-ti2v-5b --checkpoint /models/Wan2.2-TI2V-5B-Diffusers --create-env
  rayreel generate --model wan2.2-ti2v-5b \"a red fox running through snow\" -o fox.mp4

Without --server the models are those of the configuration, and no server is needed.
A server that runs knows of a new model when it is started again.";

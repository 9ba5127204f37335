"""Texts of a silo's folder: its README, its environment, and its unit for systemd. `$name` stands for a value."""

ENVIRONMENT = """\
# Where the agent finds its credentials; systemd, podman and a shell read this file.
LWFED_S3_SECRET_DIR=$home/secret
# Seconds for which it waits while the store is away, and for new keys when it rejects the old ones.
LWFED_S3_PATIENCE_S=120
"""

UNIT = """\
[Unit]
Description=lwfed agent of $client
Wants=network-online.target
After=network-online.target time-sync.target

[Service]
User=lwfed
EnvironmentFile=$home/agent.env
ExecStart=/opt/lwfed/bin/lwfed agent --store $store --client $client --policy $home/agent.yaml
Restart=always
RestartSec=30
# interrupted, as by `systemctl stop`
SuccessExitStatus=130
# a wrong command line or policy stays wrong
RestartPreventExitStatus=2 10
StateDirectory=lwfed/$client
StateDirectoryMode=0700

# It writes below its state directory and opens no port.
NoNewPrivileges=true
CapabilityBoundingSet=
ProtectSystem=strict
ProtectHome=read-only
PrivateTmp=true
ProtectKernelTunables=true
ProtectKernelModules=true
ProtectControlGroups=true
RestrictSUIDSGID=true
LockPersonality=true
SocketBindDeny=any

[Install]
WantedBy=multi-user.target
"""

README = """\
# The agent of $client

An agent trains for $client whenever a run of the federation in `$store` wants it, with the data of this machine. It
was written for lwfed $version.

| file | what it is |
| --- | --- |
| `agent.yaml` | **your policy: edit it**. Data, devices, limits, and the runs that you take part in |
| `agent.env` | the agent's environment |
| `secret/` | the credentials of $client. Keep them to yourself: whoever has them can act as $client |
| `lwfed-agent.service` | a unit for systemd |

## Network

One outgoing connection: to the store at `$endpoint`. No port is opened, and nobody connects to this machine. A model
with a pretrained tokenizer reads its files, too: put them on this machine.

## Install

The agent must run the same lwfed and the same libraries as the run's coordinator; if they differ, it says so and trains
nothing. Ask who runs the federation for the image, or for the source and its `constraints.txt`.

```sh
python3 -m venv /opt/lwfed && /opt/lwfed/bin/pip install -c constraints.txt ./lwfed
useradd --system --user-group lwfed
mkdir -p $home && cp -r agent.yaml agent.env secret $home/
chown -R lwfed: $home/secret && chmod -R go= $home/secret
$${EDITOR:-vi} $home/agent.yaml                          # name your data
cp lwfed-agent.service /etc/systemd/system/lwfed-agent-$client.service
```

Without systemd, or in another place, change the paths in `agent.env` and `agent.yaml`:

```sh
set -a && . ./agent.env && set +a
lwfed agent --store $store --client $client --policy agent.yaml
```

In a container, with the federation's image:

```sh
podman run --detach --name lwfed-$client --restart always --read-only --tmpfs /tmp --cap-drop all --user 0:0 \\
  --env-file $home/agent.env --volume $home:$home:ro --volume $state:$state \\
  --volume /data:/data:ro --device nvidia.com/gpu=all IMAGE \\
  lwfed agent --store $store --client $client --policy $home/agent.yaml
```

(rootless podman, so that root in it is you; the folders are yours then.)

## Check and start

```sh
lwfed agent --store $store --client $client --policy $home/agent.yaml --idle-s 30   # ends with 0 if all is well
systemctl enable --now lwfed-agent-$client
journalctl -u lwfed-agent-$client -f
```

It says `waits for work`, then a line for each task and each refusal. A client has one agent: a second one gives way.
Exit codes: 10 the policy is wrong; 17 the store refuses the credentials or this machine's clock (keep it by NTP); 24
another agent of $client is at work. While the store is away it says so and waits.

## What is sent

- Each round: the parameters that were trained here (as changes, possibly rounded), the number of training examples, and
  losses, times, memory, FLOPs and bytes; on request the metrics of a held-out part of your examples.
- Once per run, if the federation uses each client's own data: a digest of their version, numbers of examples, of those
  left out by reason, and per missing modality; the names of classes, and with balanced classes their counts; **ids of
  examples that cannot be read, and why**.
- While it works: this machine's name, lwfed's version, the training step and its loss, and one line on why a task
  failed or was refused. Such a line may name a file or an example.

## What is never sent

Examples: no image, text, sound, signal or label of one. The federation cannot name the folders of data that are read
here; only `agent.yaml` does. But parameters that were trained on data can reveal something of them: lwfed has no secure
aggregation and no differential privacy, so whoever runs the federation learns what your updates show. Other silos
cannot read them.

## Update

Install the new lwfed when the federation does, then `systemctl restart lwfed-agent-$client`. The agent takes up the
round in work.

New credentials: the federation sends a new `secret/`. Move its files over the old ones. A running agent reads them as
soon as the store rejects the old ones, and waits `LWFED_S3_PATIENCE_S` for them, so the round in work is not lost;
after that it ends with exit code 17, and its next start reads them. The policy is read at the start only.

## Leave

`systemctl disable --now lwfed-agent-$client` ends your part at once; runs go on without you as far as their quorum
allows. Ask who runs the federation to revoke the credentials (`lwfed store revoke $store --client $client`), and remove
`$home` and `$state`. Updates that were sent stay in the store.
"""

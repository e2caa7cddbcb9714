"""What README.txt of an evidence bundle tells somebody who has never heard of callrec, in two languages."""

TEXT = """\
EVIDENCE OF A TELEPHONE CALL                                        (slovensko: spodaj)

What this is. One call, as the operator's ledger has it: what was announced, which key was pressed, on what legal basis
it was recorded or why it was not, and what became of the recording. Times are UTC.

  audio.wav         the recording, if it may be given: left the caller, right what the caller heard
  notice.txt, .wav  the text of the notice and the sound that was played, if they are still at hand
  receipt.json      the receipt for the person recorded (ISO/IEC TS 27560:2023, by W3C's Data Privacy Vocabulary)
  vcon.json         the same for machines, by two drafts of the IETF that the file names
  access.json       who had to do with it, without the names of employees: what for, and when
  entries/          the ledger's entries of the call: .leaf what was hashed, .body what it said, .proof where it stands.
                    Some have no .body here: it names an employee (see access.json), or its time is over
  export.*          the ledger's entry that this file was made
  checkpoint.txt    the state of the ledger, signed
  keys.txt          the ledger's public keys, as the operator has them: compare, do not trust
  opening.json      only in the copy for the person who called: the number, and what opens its commitment
  manifest.json     the SHA-256 of all of these, and why something is not here

How to check it. Get the ledger's public key from somebody you trust, not from here, and verify.py from a release of
callrec (callrec/ledger/verify.py). With Python 3.11, and without any network:

  pip install pynacl
  python3 verify.py THIS-FILE.zip --key "NAME+ID+KEY"

It says in words what holds, and names the first part that does not. Every byte of this file counts.

What the check does NOT prove.
  - That the operator's telephone exchange told the truth when it wrote the entries. It proves that nothing was
    changed afterwards.
  - Who spoke. A number is not a person.
  - The exact time: it is the operator's clock. The signature says no more than that it was before the checkpoint; the
    operator's anchored checkpoints, or their time stamps, say when that was at the latest.
  - That there is no other call. It is about this one alone.
  - What access.json and the manifest say in words (a purpose, a reason). Kind and time of each access are proved.
  - What receipt.json and vcon.json say besides the events and the states of consent: read it in the events.
  - That entries were not left out when this was made, where these have no number in the call's course. That shows in a
    check of the whole ledger (callrec verify --ledger).


DOKAZILO O TELEFONSKEM KLICU

Kaj je to. En klic, kot ga hrani operaterjeva knjiga dogodkov: kaj je bilo predvajano, katera tipka je bila
pritisnjena, na kateri pravni podlagi je bil klic posnet ali zakaj ni bil, in kaj se je zgodilo s posnetkom. Časi so
UTC.

  audio.wav         posnetek, če ga je dovoljeno izročiti: levo klicatelj, desno to, kar je klicatelj slišal
  notice.txt, .wav  besedilo in zvok obvestila, če sta še na voljo
  receipt.json      potrdilo za osebo, ki je bila posneta
  vcon.json         isto za računalnike
  access.json       kdaj in za kakšen namen je kdo dostopal, brez imen zaposlenih
  entries/          vpisi o klicu v knjigi dogodkov, z dokazi
  export.*          vpis, da je ta datoteka nastala
  checkpoint.txt    podpisano stanje knjige
  keys.txt          javni ključi knjige, kot jih navaja operater: primerjajte jih, ne zaupajte jim
  opening.json      samo v izvodu za klicatelja: številka in to, kar odpre njeno zavezo
  manifest.json     SHA-256 vsega naštetega in razlogi, če česa ni

Kako preveriti. Javni ključ dobite od nekoga, ki mu zaupate, ne iz te datoteke; verify.py iz izdaje programa callrec.
Ukaza sta zgoraj; omrežje ni potrebno. Program z besedami pove, kaj drži, in imenuje prvi del, ki ne drži.

Česa preverjanje NE dokaže: da je operaterjeva centrala vpisala resnico (dokaže, da se pozneje ni nič spremenilo); kdo
je govoril; točnega časa; da ni bilo drugih klicev; namenov in razlogov, zapisanih z besedami; česar v receipt.json in
vcon.json ni med dogodki in stanji privolitve; da niso bili izpuščeni vpisi brez zaporedne številke v klicu (to pokaže
preverjanje celotne knjige).
"""

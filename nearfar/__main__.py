from nearfar.cli import main

raise SystemExit(main())

-- A chat history of the first form, as it was written: never changed, so that every later version is tried on it.
PRAGMA application_id = 1279550315;
BEGIN TRANSACTION;
CREATE TABLE chats (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        created_s REAL NOT NULL,
        changed_s REAL NOT NULL,
        is_pinned INTEGER NOT NULL DEFAULT 0,
        deleted_s REAL,
        mode TEXT NOT NULL,
        character TEXT NOT NULL,
        title_is_own INTEGER NOT NULL DEFAULT 0,
        title TEXT NOT NULL DEFAULT '',
        settings TEXT NOT NULL DEFAULT '{}',
        draft TEXT NOT NULL DEFAULT ''
    );
INSERT INTO "chats" VALUES(1,1700000060.0,1700000060.0,0,NULL,'chat','Ada',1,'旧聊天','{"preset": "precise"}','未发送');
INSERT INTO "chats" VALUES(2,1700000120.0,1700000300.0,0,NULL,'instruct','',0,'What is old?','{}','');
CREATE TABLE messages (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        chat INTEGER NOT NULL REFERENCES chats (id) ON DELETE CASCADE,
        parent INTEGER REFERENCES messages (id),
        is_shown INTEGER NOT NULL,
        removed TEXT CHECK (removed IN ('alone', 'cut')),
        removed_by INTEGER,
        role TEXT NOT NULL CHECK (role IN ('user', 'assistant', 'text')),
        state TEXT NOT NULL CHECK (state IN ('writing', 'done', 'stopped', 'failed')),
        created_s REAL NOT NULL,
        stats TEXT NOT NULL DEFAULT '{}',
        text TEXT NOT NULL
    );
INSERT INTO "messages" VALUES(1,2,NULL,1,NULL,NULL,'user','done',1700000180.0,'{}','What is old?');
INSERT INTO "messages" VALUES(2,2,1,0,NULL,NULL,'assistant','done',1700000240.0,'{"tokens": 2}','A file.');
INSERT INTO "messages" VALUES(3,2,1,1,NULL,NULL,'assistant','done',1700000300.0,'{"tokens": 3}','This file.');
CREATE INDEX messages_by_chat ON messages (chat);
CREATE INDEX messages_by_parent ON messages (parent);
CREATE INDEX messages_removed ON messages (removed_by) WHERE removed_by IS NOT NULL;
CREATE INDEX messages_in_writing ON messages (state) WHERE state = 'writing';
CREATE UNIQUE INDEX one_version_shown ON messages (chat, ifnull(parent, 0)) WHERE is_shown;
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('chats',2);
INSERT INTO "sqlite_sequence" VALUES('messages',3);
COMMIT;
PRAGMA user_version = 1;

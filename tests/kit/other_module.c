/* Another module, for tests: commands that wait, that run commands, and a listener that writes. Built by other_module.py. */

#include <stddef.h>
#include <string.h>

typedef struct Ctx Ctx;
typedef struct String String;
typedef struct CallReply CallReply;
typedef struct BlockedClient BlockedClient;
typedef int Command(Ctx *ctx, String **argv, int argc);

#define OK 0
#define DENY_BLOCKING (1 << 21)
#define NOTIFY_STRING (1 << 3)

static int (*Init)(Ctx *, const char *, int, int);
static int (*GetApi)(const char *, void *);
static int (*CreateCommand)(Ctx *, const char *, Command *, const char *, int, int, int);
static int (*GetContextFlags)(Ctx *);
static int (*ReplyWithError)(Ctx *, const char *);
static int (*ReplyWithSimpleString)(Ctx *, const char *);
static int (*ReplyWithCallReply)(Ctx *, CallReply *);
static BlockedClient *(*BlockClient)(Ctx *, Command *, Command *, void (*)(Ctx *, void *), long long);
static CallReply *(*Call)(Ctx *, const char *, const char *, ...);
static void (*FreeCallReply)(CallReply *);
static const char *(*StringPtrLen)(const String *, size_t *);
static int (*SubscribeToKeyspaceEvents)(Ctx *, int, int (*)(Ctx *, int, const char *, String *));

static int waited(Ctx *ctx, String **argv, int argc) { return ReplyWithSimpleString(ctx, "waited"); }

/* other.wait key: answers later, where clients may wait. */
static int wait_command(Ctx *ctx, String **argv, int argc) {
    if (GetContextFlags(ctx) & DENY_BLOCKING) return ReplyWithError(ctx, "ERR may not wait here");
    BlockClient(ctx, NULL, waited, NULL, 5);
    return OK;
}

/* other.run key command [arg ...]: runs the command. */
static int run_command(Ctx *ctx, String **argv, int argc) {
    CallReply *reply = Call(ctx, StringPtrLen(argv[2], NULL), "!Ev", argv + 3, (size_t)(argc - 3));
    if (!reply) return ReplyWithError(ctx, "ERR no reply");
    int outcome = ReplyWithCallReply(ctx, reply);
    FreeCallReply(reply);
    return outcome;
}

/* Counts changes of keys that begin with `noted:` in `k:notes`. */
static int happened(Ctx *ctx, int type, const char *event, String *key) {
    if (strncmp(StringPtrLen(key, NULL), "noted:", 6) == 0) {
        CallReply *reply = Call(ctx, "INCR", "!Ec", "k:notes");
        if (reply) FreeCallReply(reply);
    }
    return OK;
}

int RedisModule_OnLoad(Ctx *ctx, String **argv, int argc) {
    GetApi = (int (*)(const char *, void *))((void **)ctx)[0];
#define GET(name) GetApi("RedisModule_" #name, (void *)&name)
    GetApi("RedisModule_SetModuleAttribs", (void *)&Init);
    void (*set_attribs)(Ctx *, const char *, int, int) = (void *)Init;
    set_attribs(ctx, "other", 1, 1);
    GET(CreateCommand), GET(GetContextFlags), GET(ReplyWithError), GET(ReplyWithSimpleString), GET(ReplyWithCallReply);
    GET(BlockClient), GET(Call), GET(FreeCallReply), GET(StringPtrLen), GET(SubscribeToKeyspaceEvents);
    if (CreateCommand(ctx, "other.wait", wait_command, "write", 1, 1, 1) != OK) return 1;
    if (CreateCommand(ctx, "other.run", run_command, "write", 1, 1, 1) != OK) return 1;
    return SubscribeToKeyspaceEvents(ctx, NOTIFY_STRING, happened);
}

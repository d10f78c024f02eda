#include "client/chat.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <optional>
#include <thread>

#include "base/json_text.h"
#include "base/utf8.h"
#include "client/answer.h"
#include "client/line_input.h"
#include "client/report.h"

namespace xgen::client {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::uint64_t kMaxAnswer = 256 << 20;  // bytes as they come

constexpr const char* kHelp =
    "  /help          this\n"
    "  /clear         forget the conversation\n"
    "  /system TEXT   set the system prompt; without TEXT, show it; \"/system -\" takes it away\n"
    "  /save FILE     write the conversation to a new file, as JSON\n"
    "  /quit          leave; so do Ctrl-D and a second Ctrl-C\n"
    "  \"\"\"            on a line of its own begins and ends a message of several lines;\n"
    "                 a line that is typed has 4095 bytes at most\n"
    "  //TEXT         a message that begins with a slash\n"
    "Ctrl-C stops an answer.\n";

// Cancels a call at Ctrl-C, for as long as it is there.
class Watch {
 public:
  Watch(LineInput& input, http::CancelToken& cancel) : input_(input) {
    thread_ = std::thread([this, &cancel] {
      pollfd waits[2] = {{input_.interrupts(), POLLIN, 0}, {over_, POLLIN, 0}};
      while (::poll(waits, 2, -1) < 0) {
      }
      if (waits[0].revents != 0) cancel.cancel();
    });
  }
  ~Watch() {
    eventfd_write(over_, 1);
    thread_.join();
    close(over_);
    input_.take_interrupts();
  }
  Watch(const Watch&) = delete;
  Watch& operator=(const Watch&) = delete;

 private:
  LineInput& input_;
  const int over_ = eventfd(0, EFD_CLOEXEC);
  std::thread thread_;
};

class Chat {
 public:
  explicit Chat(ChatOptions options)
      : options_(std::move(options)),
        talk_(options_.system),
        colours_(isatty(STDERR_FILENO) == 1),
        screen_(isatty(STDOUT_FILENO) == 1) {}

  int run();

 private:
  bool command(const std::string& line);
  bool answer();
  void save(const std::string& path);
  void note(const std::string& text) const {
    std::fflush(stdout);
    std::fprintf(stderr, colours_ ? "\x1b[2m%s\x1b[0m\n" : "%s\n", text.c_str());
  }
  void complain(const std::string& text) {
    failed_ = true;
    std::fflush(stdout);
    std::fprintf(stderr, "xgen-model: %s\n", for_terminal(text).c_str());
  }
  void show(std::string_view text) const {
    const std::string out = screen_ ? for_terminal(text) : std::string(text);
    std::fwrite(out.data(), 1, out.size(), stdout);
    std::fflush(stdout);
  }
  void prompt(const char* text) const {
    if (input_.terminal() && screen_) show(text);
  }

  ChatOptions options_;
  LineInput input_;  // before the client, whose threads must not take SIGINT
  http::Client client_;
  Conversation talk_;
  const bool colours_;  // of stderr
  const bool screen_;   // stdout is a terminal
  bool failed_ = false;
  bool over_ = false;
};

// False where it was none: a message.
bool Chat::command(const std::string& line) {
  if (!line.starts_with('/') || line.starts_with("//")) return false;
  const std::size_t blank = line.find(' ');
  const std::string name = line.substr(0, blank);
  std::string rest = blank == std::string::npos ? "" : line.substr(blank + 1);
  rest.erase(0, std::min(rest.find_first_not_of(' '), rest.size()));
  if (name == "/quit" || name == "/exit") {
    over_ = true;
  } else if (name == "/help") {
    std::fputs(kHelp, stderr);
  } else if (name == "/clear") {
    talk_.clear();
    note("forgotten");
  } else if (name == "/system") {
    if (rest.empty()) {
      note(talk_.system().empty() ? "there is no system prompt" : for_terminal(talk_.system()));
    } else {
      talk_.set_system(rest == "-" ? "" : rest);
      note(rest == "-" ? "no system prompt" : "system prompt set");
    }
  } else if (name == "/save") {
    save(rest);
  } else {
    complain("there is no command " + name + "; /help tells which there are");
  }
  return true;
}

void Chat::save(const std::string& path) {
  if (path.empty()) return complain("/save needs the name of a file");
  const std::string text = "{\"model\":" +
                           [this] {
                             std::string name;
                             append_json_string(name, options_.model);
                             return name;
                           }() +
                           ",\"messages\":" + talk_.messages() + "}\n";
  const int file = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  bool fine = file >= 0;
  for (std::size_t done = 0; fine && done < text.size();) {
    const ssize_t n = ::write(file, text.data() + done, text.size() - done);
    fine = n > 0;
    if (fine) done += static_cast<std::size_t>(n);
  }
  const int error = errno;
  if (file >= 0) fine = ::close(file) == 0 && fine;
  if (!fine) return complain("/save " + path + ": " + std::strerror(error));
  note("saved to " + for_terminal(path));
}

// Asks for the answer to what has been said, and shows it as it comes; false if it was stopped.
bool Chat::answer() {
  std::string body = "{\"model\":";
  append_json_string(body, options_.model);
  body += ",\"messages\":" + talk_.messages();
  if (!options_.extra.has("stream_options")) body += ",\"stream_options\":{\"include_usage\":true}";
  body += ",\"stream\":true" + options_.extra.text + "}";

  http::ClientRequest request = options_.api.request("/chat/completions", std::move(body));
  request.max_body = kMaxAnswer;
  http::CancelToken cancel;
  std::optional<Watch> watch(std::in_place, input_, cancel);
  Answer answer;
  std::string text;
  int events = 0;
  bool thinking = false;
  std::optional<double> first;
  double last = 0;
  const auto begin = Clock::now();
  const auto elapsed = [&] { return std::chrono::duration<double>(Clock::now() - begin).count(); };
  const Status called = http::fetch(
      client_, std::move(request),
      [&](const http::ResponseHead& head) {
        answer.head(head);
        return Status();
      },
      [&](std::string_view bytes) {
        answer.body(bytes, [&](const Answer::Piece& piece) {
          ++events;
          last = elapsed();
          if (!first) first = last;
          // What a model thinks is for people, not for what reads the pipe.
          if (!piece.reasoning.empty() && screen_) {
            if (!thinking) show("thinking: ");
            thinking = true;
            show(piece.reasoning);
          }
          if (piece.text.empty()) return;
          if (thinking) show("\n\n");
          thinking = false;
          show(piece.text);
          text += piece.text;
        });
        // Nobody sees the rest.
        return std::ferror(stdout) == 0 ? Status() : Status(make_error(ErrorCode::cancelled, "stdout"));
      },
      &cancel);
  watch.reset();

  if (!text.empty() || thinking) show("\n");
  const bool stopped = cancel.cancelled();
  const bool whole = answer.end({called, http::CallEnd::Phase::body}) || stopped;
  if (!whole && std::ferror(stdout) == 0)
    complain((answer.fault() == Fault::refused ? ""
              : text.empty()                   ? "no answer: "
                                               : "the answer broke off: ") +
             answer.message());
  const int tokens = answer.has_usage() ? answer.usage().completion_tokens : events;
  if (first) {
    std::string timing = time_text(*first) + " to the first token";
    char rest[96];
    std::snprintf(rest, sizeof(rest), ", %s%d token%s", answer.has_usage() ? "" : "about ", tokens,
                  tokens == 1 ? "" : "s");
    timing += rest;
    if (tokens > 1 && last > *first) {
      std::snprintf(rest, sizeof(rest), ", %.1f tokens/s", (tokens - 1) / (last - *first));
      timing += rest;
    }
    if (answer.finish_reason() == "length") timing += ", cut off at the most tokens it may have";
    note("[" + timing + (stopped ? ", stopped]" : "]"));
  } else if (stopped) {
    note("[stopped]");
  } else if (whole) {
    note("[the answer was empty]");
  }
  talk_.answered(std::move(text));
  return !stopped;
}

int Chat::run() {
  http::CancelToken cancel;
  const auto model = [&] {
    const Watch watch(input_, cancel);
    return choose_model(client_, options_.api, options_.model, &cancel);
  }();
  if (cancel.cancelled()) return 130;
  if (!model) {
    complain(model.error().message);
    return 1;
  }
  options_.model = model->name;
  if (input_.terminal()) note(for_terminal(options_.model) + " at " + options_.api.text() + "; /help tells more");
  std::string line;
  std::optional<std::string> block;  // a message of several lines
  bool warned = false;
  while (!over_) {
    prompt(block ? "... " : ">>> ");
    const LineInput::Event event = input_.next(line);
    if (event == LineInput::Event::end) {
      prompt("\n");
      if (block) complain("the input ended before the message did: there is no second \"\"\"");
      break;
    }
    if (event == LineInput::Event::too_long) {
      complain("a line is longer than " + std::to_string(kMaxMessage >> 20) + " MiB");
      return 1;
    }
    if (event == LineInput::Event::interrupt) {
      prompt("\n");
      if (!input_.terminal()) return 130;
      if (warned) break;
      warned = true;
      block.reset();
      note("once more to leave");
      continue;
    }
    warned = false;
    if (line == "\"\"\"" && !block) {
      block.emplace();
      continue;
    }
    if (block && line != "\"\"\"") {
      *block += (block->empty() ? "" : "\n") + line;
      if (block->size() <= kMaxMessage) continue;
      complain("the message is longer than " + std::to_string(kMaxMessage >> 20) + " MiB");
      return 1;
    }
    if (block) {
      line = std::move(*block);
      block.reset();
    } else if (command(line)) {
      continue;
    } else if (line.starts_with("//")) {
      line.erase(0, 1);
    }
    if (line.find_first_not_of(" \t") == std::string::npos) continue;
    talk_.ask(std::move(line));
    if (!answer() && !input_.terminal()) return 130;
    if (std::ferror(stdout) != 0) {
      complain("stdout cannot be written: it is closed or full");
      return 1;
    }
  }
  return failed_ && !input_.terminal() ? 1 : 0;
}

}  // namespace

void Conversation::answered(std::string text) {
  if (text.empty())
    turns_.pop_back();
  else
    turns_.push_back({true, std::move(text)});
}

std::string Conversation::messages() const {
  std::string out = "[";
  const auto add = [&](const char* role, const std::string& text) {
    out += std::string(out.size() > 1 ? "," : "") + "{\"role\":\"" + role + "\",\"content\":";
    append_json_string(out, text);
    out += '}';
  };
  if (!system_.empty()) add("system", system_);
  for (const Turn& turn : turns_) add(turn.by_model ? "assistant" : "user", turn.text);
  return out + "]";
}

std::string for_terminal(std::string_view text) {
  const std::string valid = replace_invalid_utf8(text);
  std::string out;
  for (std::size_t i = 0; i < valid.size(); ++i) {
    const auto c = static_cast<unsigned char>(valid[i]);
    // U+0080 to U+009F.
    if (c == 0xc2 && static_cast<unsigned char>(valid[i + 1]) < 0xa0) {
      ++i;
      continue;
    }
    if ((c >= 0x20 && c != 0x7f) || c == '\n' || c == '\t') out += valid[i];
  }
  return out;
}

int run_chat(ChatOptions options) { return Chat(std::move(options)).run(); }

}  // namespace xgen::client

#include <algorithm>
#include <boost/asio/ip/address.hpp>

#include "base/log.h"
#include "http/client_loop.h"

namespace xgen::http {

namespace asio = boost::asio;
using asio::ip::tcp;
using SysError = boost::system::error_code;

namespace {

constexpr int kReadsPerTurn = 8;  // then other connections have their turn

bool is_token(std::string_view text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
           std::string_view("!#$%&'*+-.^_`|~").find(c) != std::string_view::npos;
  });
}

}  // namespace

ClientCall::ClientCall(std::shared_ptr<ClientLoop> loop, ClientRequest request, std::shared_ptr<CallListener> listener)
    : loop_(std::move(loop)),
      request_(std::move(request)),
      listener_(std::move(listener)),
      parser_(request_.method == "HEAD", request_.max_head),
      timer_(loop_->context()),
      admitted_(loop_->shared().running.fetch_add(1, std::memory_order_relaxed) < loop_->shared().options.max_calls) {}

ClientCall::~ClientCall() {
  if (!over_.load()) loop_->shared().running.fetch_sub(1, std::memory_order_relaxed);
}

// What is thrown while working for this call (by its listener, or for want of memory) ends it and nothing else.
template <class Work>
void ClientCall::contain(Work work) noexcept {
  const LoopTurn turn(*loop_);
  try {
    try {
      work();
    } catch (const std::exception& thrown) {
      log::error("http", "fault in a call of the client", {{"reason", thrown.what()}});
      finish(fault(ErrorCode::internal, thrown.what()));
    }
  } catch (...) {  // not even memory for the message
    abandon();
  }
}

Error ClientCall::fault(ErrorCode code, std::string_view what) const {
  return make_error(code, request_.url.origin() + ": " + std::string(what));
}

// False if the call is over, or its owner does not listen any more.
template <class Callback>
bool ClientCall::tell(Callback callback) {
  if (!cancelled_.load()) callback(*listener_);
  if (cancelled_.load()) abandon();
  return !over_.load();
}

// ---- Starting ----

Status ClientCall::check() const {
  if (!is_token(request_.method)) return fault(ErrorCode::invalid_argument, "the method is malformed");
  for (const auto& [name, value] : request_.headers)
    if (!is_token(name) ||
        std::any_of(value.begin(), value.end(), [](char c) { return c == '\r' || c == '\n' || c == '\0'; }))
      return fault(ErrorCode::invalid_argument, "the header '" + name + "' is malformed");
  if (!admitted_) return fault(ErrorCode::overloaded, "too many calls are running (max_calls)");
  return {};
}

std::string ClientCall::make_head() const {
  std::string out = request_.method + " " + request_.url.target + " HTTP/1.1\r\n";
  const auto add = [&](std::string_view name, std::string_view value) {
    out.append(name).append(": ").append(value).append("\r\n");
  };
  const auto given = [&](std::string_view name) {
    return std::any_of(request_.headers.begin(), request_.headers.end(),
                       [&](const auto& each) { return equal_ignoring_case(each.first, name); });
  };
  if (!given("host")) add("Host", request_.url.authority());
  for (const auto& [name, value] : request_.headers)
    if (!equal_ignoring_case(name, "content-length")) add(name, value);
  if (!given("user-agent")) add("User-Agent", loop_->shared().options.user_agent);
  if (!request_.body.empty() || request_.method == "POST" || request_.method == "PUT")
    add("Content-Length", std::to_string(request_.body.size()));
  out += "\r\n";
  return out;
}

void ClientCall::begin() {
  if (over_.load()) return;
  loop_->add(shared_from_this());
  contain([this] {
    if (Status status = check(); !status) return finish(std::move(status));
    head_ = make_head();
    origin_ = request_.url.origin();
    for (const std::string* each : {&request_.url.address, &request_.ca_file, &request_.pinned_cert_file,
                                    &request_.cert_file, &request_.key_file})
      origin_.append(1, '\0').append(*each);
    link_ = loop_->take(origin_);
    if (link_ == nullptr) return connect();
    reused_ = true;
    loop_->shared().reused.fetch_add(1, std::memory_order_relaxed);
    link_->call = this;
    send();
  });
}

// ---- Connecting ----

void ClientCall::connect() {
  phase_ = Phase::connecting;
  reused_ = false;
  connect_deadline_ = Clock::now() + request_.connect_timeout;
  set_deadline(connect_deadline_);
  addresses_.clear();
  next_address_ = 0;
  const std::string& place = request_.url.address.empty() ? request_.url.host : request_.url.address;
  SysError no_literal;
  asio::ip::make_address(place, no_literal);
  if (!no_literal) {
    addresses_ = {place};
    return try_next_address({});
  }
  loop_->look_up(place, [weak = weak_from_this(), attempt = ++attempt_](Client::Addresses found) {
    const auto self = weak.lock();
    if (self == nullptr || self->over_.load() || attempt != self->attempt_) return;
    self->contain([&] {
      if (!found)
        return self->finish(self->fault(ErrorCode::unavailable, "the name is not found: " + found.error().message));
      self->addresses_ = *std::move(found);
      self->try_next_address({});
    });
  });
}

// Each address has an equal share of the time that is left, so that one that does not answer leaves some for the
// others.
void ClientCall::try_next_address(const std::string& failure) {
  drop_link();
  const auto now = Clock::now();
  const std::size_t left = addresses_.size() - next_address_;
  if (left == 0 || now >= connect_deadline_)
    return finish(fault(now >= connect_deadline_ ? ErrorCode::timeout : ErrorCode::unavailable, failure));
  SysError error;
  const tcp::endpoint address(asio::ip::make_address(addresses_[next_address_++], error), request_.url.port);
  link_ = std::make_shared<ClientLink>(*loop_, origin_);
  link_->call = this;
  if (!error) link_->socket().open(address.protocol(), error);
  if (!error) link_->socket().set_option(tcp::no_delay(true), error);
  if (!error) link_->socket().non_blocking(true, error);
  // One that was looked up is the host's; one that was given may be any of them.
  const std::string cannot =
      request_.url.address.empty() ? "cannot connect: " : "cannot connect to " + request_.url.address + ": ";
  if (error) return try_next_address(cannot + error.message());
  set_deadline(now + (connect_deadline_ - now) / static_cast<int>(left));
  link_->socket().async_connect(address, [self = shared_from_this(), attempt = ++attempt_, cannot](SysError failed) {
    if (self->over_.load() || attempt != self->attempt_) return;
    self->contain([&] {
      if (failed) return self->try_next_address(cannot + failed.message());
      self->on_connected();
    });
  });
}

void ClientCall::on_connected() {
  loop_->shared().opened.fetch_add(1, std::memory_order_relaxed);
  link_->born = Clock::now();
  set_deadline(connect_deadline_);
  if (!request_.url.tls) return send();
  auto context = loop_->tls().get({request_.ca_file, request_.pinned_cert_file, request_.cert_file, request_.key_file});
  if (!context) return finish(fault(context.error().code, context.error().message));
  link_->begin_tls(*context, request_.url.host);
  handshaking_ = true;
  handshake();
}

void ClientCall::handshake() {
  const IoResult result = link_->handshake();
  switch (result.kind) {
    case IoResult::Kind::done:
      handshaking_ = false;
      return send();
    case IoResult::Kind::want_read:
      return link_->watch();
    case IoResult::Kind::want_write:
      return link_->await_writable();
    case IoResult::Kind::closed:
    case IoResult::Kind::failed:
      handshaking_ = false;
      return finish(fault(ErrorCode::unavailable, result.reason.empty() ? "the connection was closed" : result.reason));
  }
}

// ---- Sending ----

void ClientCall::send() {
  phase_ = Phase::sending;
  sent_ = 0;
  if (request_.body.size() <= kClientReadSize) {  // one packet rather than two
    head_ += request_.body;
    request_.body.clear();
  }
  set_deadline(Clock::now() + request_.idle_timeout);
  writing_ = true;
  // What comes is read while sending goes on: a refusal may come before the whole body is sent.
  link_->watch();
  on_writable();
}

void ClientCall::on_writable() {
  contain([this] {
    if (handshaking_) return handshake();
    while (writing_) {
      std::string_view rest = sent_ < head_.size() ? std::string_view(head_).substr(sent_)
                                                   : std::string_view(request_.body).substr(sent_ - head_.size());
      if (rest.empty()) {
        writing_ = false;
        if (phase_ == Phase::sending) {
          phase_ = Phase::waiting;
          set_deadline(Clock::now() + request_.first_byte_timeout);
        }
        return;
      }
      const IoResult result = link_->write(rest);
      switch (result.kind) {
        case IoResult::Kind::done:
          sent_ += result.bytes;
          if (phase_ == Phase::sending) set_deadline(Clock::now() + request_.idle_timeout);
          break;
        case IoResult::Kind::want_write:
          return link_->await_writable();
        case IoResult::Kind::want_read:  // the next read goes on with it
          return;
        case IoResult::Kind::closed:
        case IoResult::Kind::failed:
          // The other side may have answered before it closed: reading tells.
          writing_ = false;
          if (phase_ == Phase::sending) phase_ = Phase::waiting;
          return;
      }
    }
  });
}

// ---- Reading ----

void ClientCall::on_readable() {
  const auto self = shared_from_this();
  contain([this] {
    if (over_.load() || link_ == nullptr) return;
    if (handshaking_) return handshake();
    read();
    if (writing_ && !over_.load() && link_ != nullptr && link_->encrypted()) on_writable();
  });
}

void ClientCall::read() {
  auto& buffer = loop_->buffer();
  for (int i = 0; i < kReadsPerTurn; ++i) {
    if (paused_.load()) return;  // resume() goes on
    const IoResult result = link_->read(buffer.data(), buffer.size());
    switch (result.kind) {
      case IoResult::Kind::done:
        if (!feed(std::string_view(buffer.data(), result.bytes))) return;
        if (!link_->encrypted() && result.bytes < buffer.size()) return link_->watch();
        break;
      case IoResult::Kind::want_read:
        return link_->watch();
      case IoResult::Kind::want_write:
        link_->watch();
        return link_->await_writable();
      case IoResult::Kind::closed:
        return on_ended("the connection was closed", true);
      case IoResult::Kind::failed:
        return on_ended(result.reason, false);
    }
  }
  loop_->post([self = shared_from_this()] {
    if (!self->over_.load() && self->link_ != nullptr && !self->link_->watching()) self->on_readable();
  });
}

// False once the call is over.
bool ClientCall::feed(std::string_view input) {
  if (phase_ == Phase::sending) set_deadline(Clock::now() + request_.first_byte_timeout);
  if (phase_ < Phase::head) phase_ = Phase::head;
  std::string_view piece;
  for (;;) {
    switch (parser_.next(input, piece)) {
      case ResponseParser::Step::need_more:
        // Some servers send the head at once and compute then.
        if (phase_ == Phase::body && body_bytes_ > 0) set_deadline(Clock::now() + request_.idle_timeout);
        return true;
      case ResponseParser::Step::head:
        phase_ = Phase::body;
        if (!tell([this](CallListener& listener) { listener.on_head(std::move(parser_.head())); })) return false;
        break;
      case ResponseParser::Step::body:
        body_bytes_ += piece.size();
        if (body_bytes_ > request_.max_body) {
          finish(
              fault(ErrorCode::too_large, "the answer is larger than " + std::to_string(request_.max_body) + " bytes"));
          return false;
        }
        if (!tell([piece](CallListener& listener) { listener.on_body(piece); })) return false;
        break;
      case ResponseParser::Step::done: {
        phase_ = Phase::done;
        const bool reusable =
            parser_.keep_alive() && input.empty() && !writing_ && sent_ == head_.size() + request_.body.size();
        if (reusable) {
          link_->call = nullptr;
          loop_->keep(std::move(link_));
        }
        finish({});
        return false;
      }
      case ResponseParser::Step::failed:
        finish(fault(ErrorCode::unavailable, parser_.error()));
        return false;
    }
  }
}

// The connection has ended; `clean`: as its end may mark the end of a body.
void ClientCall::on_ended(const std::string& reason, bool clean) {
  if (phase_ < Phase::head && reused_ && !retried_ && request_.retry_closed) {
    // It had been closed while it was kept: the request was never read.
    retried_ = true;
    loop_->shared().retried.fetch_add(1, std::memory_order_relaxed);
    drop_link();
    return connect();
  }
  if (clean && parser_.finish() == ResponseParser::Step::done) {
    phase_ = Phase::done;
    return finish({});
  }
  const std::string& why = parser_.error().empty() ? reason : parser_.error();
  finish(fault(ErrorCode::unavailable, phase_ < Phase::head ? "no answer: " + reason : why));
}

// ---- Ending ----

void ClientCall::drop_link() {
  if (link_ == nullptr) return;
  link_->call = nullptr;
  link_->close();
  link_.reset();
  handshaking_ = writing_ = false;
}

void ClientCall::end(CallEnd end) {
  if (over_.exchange(true)) return;
  loop_->shared().running.fetch_sub(1, std::memory_order_relaxed);
  const auto self = shared_from_this();
  loop_->remove(self);
  ++attempt_;
  timer_.cancel();
  drop_link();
  const auto listener = std::move(listener_);
  if (cancelled_.load()) return;
  try {
    listener->on_end(std::move(end));
  } catch (const std::exception& thrown) {
    log::error("http", "fault at the end of a call of the client", {{"reason", thrown.what()}});
  }
}

void ClientCall::finish(Status status) { end({std::move(status), phase_}); }

void ClientCall::abandon() {
  cancelled_.store(true);
  end({});
}

void ClientCall::cancel() {
  cancelled_.store(true);
  if (over_.load()) return;
  loop_->post([self = shared_from_this()] { self->abandon(); });
}

void ClientCall::fail(Error error) {
  if (over_.load()) return;
  loop_->post([self = shared_from_this(), error = std::move(error)] { self->finish(error); });
}

void ClientCall::resume() {
  if (!paused_.exchange(false)) return;
  loop_->post([self = shared_from_this()] {
    if (!self->over_.load() && self->link_ != nullptr && self->phase_ >= Phase::sending && !self->link_->watching())
      self->on_readable();
  });
}

// ---- Time ----

// The timer is only ever moved to an earlier time; when it fires it is set to the deadline of then.
void ClientCall::set_deadline(Clock::time_point at) {
  deadline_ = request_.deadline ? std::min(at, *request_.deadline) : at;
  if (deadline_ < armed_) arm();
}

void ClientCall::arm() {
  armed_ = deadline_;
  timer_.expires_at(deadline_);
  timer_.async_wait([self = shared_from_this()](SysError error) {
    if (!error && !self->over_.load()) self->contain([&] { self->on_timer(); });
  });
}

void ClientCall::on_timer() {
  armed_ = Clock::time_point::max();
  const auto now = Clock::now();
  if (paused_.load() && phase_ == Phase::body) set_deadline(now + request_.idle_timeout);
  if (now < deadline_) return armed_ == Clock::time_point::max() ? arm() : void();
  if (request_.deadline && now >= *request_.deadline)
    return finish(fault(ErrorCode::timeout, "the call's deadline has passed"));
  switch (phase_) {
    case Phase::connecting:
      if (handshaking_) return finish(fault(ErrorCode::timeout, "no TLS connection within connect_timeout"));
      if (addresses_.empty()) return finish(fault(ErrorCode::timeout, "the name was not found within connect_timeout"));
      return try_next_address("no connection within connect_timeout");
    case Phase::sending:
      return finish(fault(ErrorCode::timeout, "the request could not be sent: no progress within idle_timeout"));
    case Phase::waiting:
    case Phase::head:
      return finish(fault(ErrorCode::timeout, "no answer within first_byte_timeout"));
    case Phase::body:
      if (body_bytes_ == 0)
        return finish(fault(ErrorCode::timeout, "nothing but the answer's head within first_byte_timeout"));
      [[fallthrough]];
    default:
      return finish(fault(ErrorCode::timeout, "nothing more of the answer within idle_timeout"));
  }
}

}  // namespace xgen::http

// s = g(a, b) + f(b, c, d), where f and g are functions bit by bit; F and G hold their values for {d, c, b} and {b, a}.
// The adder can subtract: it takes in a sign, if f is (b & c) ^ d.
module nomul_adder_gowin #(
    parameter WIDTH = 1,
    parameter [7:0] F = 8'b0,
    parameter [3:0] G = 4'b0
) (
    input  wire [WIDTH-1:0] a,
    input  wire [WIDTH-1:0] b,
    input  wire [WIDTH-1:0] c,
    input  wire [WIDTH-1:0] d,
    output wire [WIDTH-1:0] s
);
`ifdef SYNTHESIS
  wire [WIDTH-1:0] left = {WIDTH{G[0]}} & ~b & ~a | {WIDTH{G[1]}} & ~b & a
      | {WIDTH{G[2]}} & b & ~a | {WIDTH{G[3]}} & b & a;
  wire [WIDTH-1:0] right = {WIDTH{F[0]}} & ~d & ~c & ~b | {WIDTH{F[1]}} & ~d & ~c & b
      | {WIDTH{F[2]}} & ~d & c & ~b | {WIDTH{F[3]}} & ~d & c & b
      | {WIDTH{F[4]}} & d & ~c & ~b | {WIDTH{F[5]}} & d & ~c & b
      | {WIDTH{F[6]}} & d & c & ~b | {WIDTH{F[7]}} & d & c & b;
  wire [WIDTH-1:0] operand = F == 8'h78 ? b & c : right, add = F == 8'h78 ? ~d : {WIDTH{1'b1}};
  wire [WIDTH:0] carry;
  assign carry[0] = 1'b0;
  genvar i;
  generate
    for (i = 0; i < WIDTH; i = i + 1) begin : place
      ALU #(.ALU_MODE(2)) cell_i (
          .I0(left[i]), .I1(operand[i]), .I3(add[i]), .CIN(carry[i]), .COUT(carry[i+1]), .SUM(s[i]));
    end
  endgenerate
`else
  wire [WIDTH-1:0] left = {WIDTH{G[0]}} & ~b & ~a | {WIDTH{G[1]}} & ~b & a
      | {WIDTH{G[2]}} & b & ~a | {WIDTH{G[3]}} & b & a;
  wire [WIDTH-1:0] right = {WIDTH{F[0]}} & ~d & ~c & ~b | {WIDTH{F[1]}} & ~d & ~c & b
      | {WIDTH{F[2]}} & ~d & c & ~b | {WIDTH{F[3]}} & ~d & c & b
      | {WIDTH{F[4]}} & d & ~c & ~b | {WIDTH{F[5]}} & d & ~c & b
      | {WIDTH{F[6]}} & d & c & ~b | {WIDTH{F[7]}} & d & c & b;
  assign s = left + right;
`endif
endmodule

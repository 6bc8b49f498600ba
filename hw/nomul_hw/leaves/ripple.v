// How adders are made of a library's full adders: ripple carry, the smallest there is. Rules for Yosys' `techmap`.
// CELL is the library's full adder, A, B, C its inputs, SUM and CARRY its outputs; GATES asks for gates in its place.
// With neither, only what needs no full adder is mapped: bits of which one input is constant.

(* techmap_celltype = "$add $sub" *)
module nomul_add_sub (A, B, Y);
  parameter _TECHMAP_CELLTYPE_ = "";
  parameter A_SIGNED = 0;
  parameter B_SIGNED = 0;
  parameter A_WIDTH = 1;
  parameter B_WIDTH = 1;
  parameter Y_WIDTH = 1;
  localparam SUB = _TECHMAP_CELLTYPE_ == "$sub";
  (* force_downto *) input [A_WIDTH-1:0] A;
  (* force_downto *) input [B_WIDTH-1:0] B;
  (* force_downto *) output [Y_WIDTH-1:0] Y;
  wire [Y_WIDTH-1:0] X, CO;
  \$alu #(.A_SIGNED(A_SIGNED), .B_SIGNED(B_SIGNED), .A_WIDTH(A_WIDTH), .B_WIDTH(B_WIDTH), .Y_WIDTH(Y_WIDTH))
    alu (.A(A), .B(B), .BI(SUB), .CI(SUB), .X(X), .Y(Y), .CO(CO));
endmodule

(* techmap_celltype = "$alu" *)
module nomul_alu (A, B, BI, CI, X, Y, CO);
  parameter A_SIGNED = 0;
  parameter B_SIGNED = 0;
  parameter A_WIDTH = 1;
  parameter B_WIDTH = 1;
  parameter Y_WIDTH = 1;
  (* force_downto *) input [A_WIDTH-1:0] A;
  (* force_downto *) input [B_WIDTH-1:0] B;
  input BI, CI;
  (* force_downto *) output [Y_WIDTH-1:0] X, Y, CO;
  (* force_downto *) wire [Y_WIDTH-1:0] a, extended, b;
  \$pos #(.A_SIGNED(A_SIGNED), .A_WIDTH(A_WIDTH), .Y_WIDTH(Y_WIDTH)) extend_a (.A(A), .Y(a));
  \$pos #(.A_SIGNED(B_SIGNED), .A_WIDTH(B_WIDTH), .Y_WIDTH(Y_WIDTH)) extend_b (.A(B), .Y(extended));
  assign b = extended ^ {Y_WIDTH{BI}};
  assign X = a ^ b;

  // The sign of a sum of signed numbers needs no adder of its own. With their signs inverted, which adds a power of two
  // to each, they have none, and nor has the sum: its top bit is a carry, and inverted it is the sign.
  localparam TOP = (A_WIDTH > B_WIDTH ? A_WIDTH : B_WIDTH) - 1;
  localparam SIGNS = A_SIGNED && B_SIGNED && Y_WIDTH > TOP + 1;
  genvar i;
  generate for (i = 0; i < Y_WIDTH; i = i + 1) begin : slice
    wire c;
    if (i == 0) assign c = CI;
    else assign c = CO[i-1];
    if (!SIGNS || i < TOP)
      \$fa #(.WIDTH(1)) add (.A(a[i]), .B(b[i]), .C(c), .X(CO[i]), .Y(Y[i]));
    else begin
      assign CO[i] = a[i] & b[i] | a[i] & c | b[i] & c;
      if (i == TOP) begin
        wire carry;
        \$fa #(.WIDTH(1)) add (.A(~a[i]), .B(~b[i]), .C(c), .X(carry), .Y(Y[i]));
        assign Y[Y_WIDTH-1:TOP+1] = {(Y_WIDTH-TOP-1){~carry}};
      end
    end
  end endgenerate
endmodule

(* techmap_celltype = "$fa" *)
module nomul_fa (A, B, C, X, Y);
  parameter WIDTH = 1;
  parameter _TECHMAP_CONSTMSK_A_ = 0;
  parameter _TECHMAP_CONSTMSK_B_ = 0;
  parameter _TECHMAP_CONSTMSK_C_ = 0;
  localparam CONSTANT = _TECHMAP_CONSTMSK_A_ | _TECHMAP_CONSTMSK_B_ | _TECHMAP_CONSTMSK_C_;
  (* force_downto *) input [WIDTH-1:0] A, B, C;
  (* force_downto *) output [WIDTH-1:0] X, Y;
`ifdef GATES
  wire [WIDTH-1:0] half;
  assign half = A ^ B;
  assign Y = half ^ C;
  assign X = A & B | half & C;
`else
  genvar i;
  generate for (i = 0; i < WIDTH; i = i + 1) begin : slice
    if (CONSTANT >> i & 1) begin
      assign Y[i] = A[i] ^ B[i] ^ C[i];
      assign X[i] = A[i] & B[i] | A[i] & C[i] | B[i] & C[i];
    end else
`ifdef CELL
      `CELL add (.`A(A[i]), .`B(B[i]), .`C(C[i]), .`CARRY(X[i]), .`SUM(Y[i]));
`else
      \$fa #(.WIDTH(1)) add (.A(A[i]), .B(B[i]), .C(C[i]), .X(X[i]), .Y(Y[i]));
`endif
  end endgenerate
`ifndef CELL
  wire _TECHMAP_FAIL_ = WIDTH == 1 && !CONSTANT;
`endif
`endif
endmodule
